//! The part of the suite of language models that checks the adjoint.
//!
//! With patterns and denominators put back as they were, a model is linear between its MLPs. So what a change of the residual stream does in a
//! forward pass must be what the adjoint says, whatever the size of the change.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::hooks::NoHooks;
use crate::{Action, Adjoint, BlockHook, HookPoint, HookVisitor, LanguageModel, Passage, Result, Span};

/// Compares every answer of the adjoint, where there is one, with forward passes in which everything that it holds is held: differences of
/// them, which say too little in types of 16 bits.
///
/// # Panics
/// When they differ.
pub(super) fn is_what_the_model_does(model: &dyn LanguageModel, tokens: &Tensor) {
    let tokens = tokens.narrow(0, 0, 1);
    let mut held = Held::default();
    let logits = model.forward(&tokens, &mut held).expect("runs").expect("gives logits");
    held.holding = true;
    let Some(pass) = model.freeze(&tokens, &mut NoHooks).expect("freezes") else { return };
    if matches!(model.placement().1, Kind::Half | Kind::BFloat16) {
        return;
    }
    let tolerance = 2e-4;
    close("logits of a frozen pass", &pass.logits, &logits.squeeze_dim(0), tolerance);
    let check = Check { model, tokens: &tokens, held: &held, tolerance, parallel: pass.parallel };
    for layer in 0..model.info().layers {
        check.layer(&*pass.adjoint, layer);
    }
    check.last(&*pass.adjoint, &pass.unembedding);
}

/// Keeps, and later puts back, what a frozen model holds; and replaces one value.
#[derive(Default)]
struct Held {
    values: BTreeMap<HookPoint, Tensor>,
    holding: bool,
}

fn is_held(point: HookPoint) -> bool {
    use BlockHook::{KeyNormScale, Ln1PostScale, Ln1Scale, Ln2PostScale, Ln2Scale, Pattern, QueryNormScale};
    match point {
        HookPoint::FinalScale => true,
        HookPoint::Block { hook, .. } => {
            matches!(hook, KeyNormScale | Ln1PostScale | Ln1Scale | Ln2PostScale | Ln2Scale | Pattern | QueryNormScale)
        }
        _ => false,
    }
}

impl HookVisitor for Held {
    fn wants(&self, _: HookPoint) -> bool {
        true
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        self.values.insert(point, value.copy());
        Ok(Action::Continue)
    }
}

/// A pass with everything held, one value replaced and one read.
struct Probe<'a> {
    held: &'a Held,
    replaced: (HookPoint, Tensor),
    read: HookPoint,
    value: Option<Tensor>,
}

impl HookVisitor for Probe<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        is_held(point) || point == self.replaced.0 || point == self.read
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        if point == self.read {
            self.value = Some(value.copy());
        }
        if point == self.replaced.0 {
            return Ok(Action::Replace(self.replaced.1.shallow_clone()));
        }
        Ok(self.held.values.get(&point).filter(|_| is_held(point)).map_or(Action::Continue, |value| Action::Replace(value.shallow_clone())))
    }
}

struct Check<'a> {
    model: &'a dyn LanguageModel,
    tokens: &'a Tensor,
    held: &'a Held,
    tolerance: f64,
    parallel: bool,
}

impl Check<'_> {
    /// What is at `read`, without the batch's axis, when `value` is put at `place`.
    fn value(&self, place: HookPoint, value: &Tensor, read: HookPoint) -> Tensor {
        let mut probe = Probe { held: self.held, replaced: (place, value.shallow_clone()), read, value: None };
        self.model.forward(self.tokens, &mut probe).expect("runs");
        probe.value.expect("a place of the model").squeeze_dim(0).to_kind(Kind::Double)
    }

    /// The value at a place, another one, and the difference, without the batch's axis.
    fn changed(&self, place: HookPoint) -> (Tensor, Tensor, Tensor) {
        let was = self.held.values.get(&place).expect("a place of the model").shallow_clone();
        // Any change will do; this one is no multiple of the value and different everywhere.
        let change = (Tensor::arange(was.numel() as i64, (Kind::Double, was.device())) * 0.7).sin().view_as(&was).to_kind(was.kind());
        (&was + &change, was, change.squeeze_dim(0).to_kind(Kind::Double))
    }

    fn gradient(&self, like: &Tensor) -> Tensor {
        let (_, kind) = self.model.placement();
        (Tensor::arange(like.numel() as i64, (Kind::Double, like.device())) * 1.3).cos().view_as(like).to_kind(kind)
    }

    fn layer(&self, adjoint: &dyn Adjoint, layer: usize) {
        let at = |hook| HookPoint::block(layer, hook);
        let positions = self.tokens.size()[1];
        let all = Tensor::arange(positions, (Kind::Int64, self.model.placement().0));
        let hooks = self.model.hook_points();
        for (passage, from, to) in [
            (Passage::MlpInput { layer, hook: BlockHook::MlpIn }, BlockHook::ResidMid, BlockHook::MlpIn),
            (Passage::MlpInput { layer, hook: BlockHook::Ln2Normalized }, BlockHook::ResidMid, BlockHook::Ln2Normalized),
            (Passage::MlpOutput { layer, hook: BlockHook::MlpRawOut }, BlockHook::MlpRawOut, BlockHook::MlpOut),
        ] {
            if hooks.contains(&at(from)) && hooks.contains(&at(to)) {
                self.passage(adjoint, passage, at(from), at(to), &all, None);
            }
        }
        let info = self.model.info();
        for head in 0..info.heads {
            let own = head / (info.heads / info.kv_heads);
            self.passage(adjoint, Passage::Query { layer, head }, at(BlockHook::ResidPre), at(BlockHook::Query), &all, Some(head as i64));
            self.passage(adjoint, Passage::Key { layer, head }, at(BlockHook::ResidPre), at(BlockHook::Key), &all, Some(own as i64));
        }
        self.attention(adjoint, layer);
    }

    /// One passage: `change . pull(g) = (f(x + change) - f(x)) . g`, and `f(0)` is the constant.
    fn passage(&self, adjoint: &dyn Adjoint, passage: Passage, from: HookPoint, to: HookPoint, positions: &Tensor, head: Option<i64>) {
        let of_head = |value: Tensor| head.map_or_else(|| value.shallow_clone(), |head| value.select(1, head));
        let (new, was, change) = self.changed(from);
        let before = of_head(self.value(from, &was, to));
        let moved = of_head(self.value(from, &new, to)) - &before;
        let gradient = self.gradient(&moved);
        let pulled = adjoint.pull(passage, &gradient, positions).expect("pulls").to_kind(Kind::Double);
        let measured = (moved * gradient.to_kind(Kind::Double)).sum_dim_intlist(-1, false, Kind::Double);
        close(&format!("{passage:?}"), &(change * pulled).sum_dim_intlist(-1, false, Kind::Double), &measured, self.tolerance);
        let constant = adjoint.constant(passage, positions).expect("constant").to_kind(Kind::Double);
        close_to(
            &format!("constant of {passage:?}"),
            &constant,
            &of_head(self.value(from, &was.zeros_like(), to)),
            &before,
            self.tolerance,
        );
    }

    fn attention(&self, adjoint: &dyn Adjoint, layer: usize) {
        let [from, to] = [BlockHook::ResidPre, BlockHook::AttnOut].map(|hook| HookPoint::block(layer, hook));
        let (new, was, change) = self.changed(from);
        let before = self.value(from, &was, to);
        let moved = self.value(from, &new, to) - &before;
        let gradient = self.gradient(&moved);
        let positions = moved.size()[0];
        // Two targets with all positions and one with fewer, as ragged as they come.
        let fewer = (positions + 1) / 2;
        let rows = Tensor::cat(&[&gradient, &(&gradient * 2.0), &gradient.narrow(0, 0, fewer)], 0);
        let spans = [Span { targets: 2, positions }, Span { targets: 1, positions: fewer }];
        let pulled = adjoint.attention(layer, &rows, &spans).expect("pulls").to_kind(Kind::Double);
        let measured = (&moved * gradient.to_kind(Kind::Double)).sum_dim_intlist(-1, false, Kind::Double).cumsum(0, Kind::Double);
        let said = |first: i64, count: i64| (change.narrow(0, 0, count) * pulled.narrow(0, first, count)).sum(Kind::Double);
        let what = format!("attention of layer {layer}");
        close(&what, &said(0, positions), &measured.get(positions - 1), self.tolerance);
        close(&what, &said(positions, positions), &(measured.get(positions - 1) * 2.0), self.tolerance);
        close(&what, &said(2 * positions, fewer), &measured.get(fewer - 1), self.tolerance);

        let last = positions - 1;
        let of_last = gradient.narrow(0, last, 1);
        let heads = adjoint.heads(layer, &of_last, last).expect("pulls").squeeze_dim(0).sum_dim_intlist(0, false, Kind::Double);
        let alone = gradient.zeros_like();
        alone.narrow(0, last, 1).copy_(&of_last);
        let whole = adjoint.attention(layer, &alone, &[Span { targets: 1, positions }]).expect("pulls");
        close(&format!("heads of layer {layer}"), &heads, &whole.to_kind(Kind::Double), self.tolerance);
        let constant = adjoint.attention_constant(layer).expect("constant").to_kind(Kind::Double);
        close_to(&format!("constant of {what}"), &constant, &self.value(from, &was.zeros_like(), to), &before, self.tolerance);

        // A parallel block's MLP reads what attention reads.
        let mid = self.value(from, &new, HookPoint::block(layer, BlockHook::ResidMid));
        let added = if self.parallel { Tensor::zeros_like(&before) } else { self.value(from, &new, to) };
        close("whether blocks are parallel", &mid, &(new.squeeze_dim(0).to_kind(Kind::Double) + added), self.tolerance);
    }

    /// From the last residual stream to the logits, unless these are capped.
    fn last(&self, adjoint: &dyn Adjoint, unembedding: &Tensor) {
        let from = HookPoint::block(self.model.info().layers - 1, BlockHook::ResidPost);
        let (new, was, change) = self.changed(from);
        let moved = self.value(from, &new, HookPoint::Logits) - self.value(from, &was, HookPoint::Logits);
        if self.model.description().contains("\"logits\":") && !self.model.description().contains("\"logits\":null") {
            return;
        }
        let tokens = self.tokens.squeeze_dim(0);
        let gradient = unembedding.index_select(0, &tokens);
        let positions = Tensor::arange(tokens.size()[0], (Kind::Int64, tokens.device()));
        let pulled = adjoint.pull(Passage::Final, &gradient, &positions).expect("pulls").to_kind(Kind::Double);
        let measured = moved.gather(1, &tokens.unsqueeze(1), false).squeeze_dim(1);
        close("final norm", &(change * pulled).sum_dim_intlist(-1, false, Kind::Double), &measured, self.tolerance);
    }
}

fn close(what: &str, said: &Tensor, measured: &Tensor, tolerance: f64) {
    close_to(what, said, measured, measured, tolerance);
}

/// Differences are measured by the largest entry of `size`.
fn close_to(what: &str, said: &Tensor, measured: &Tensor, size: &Tensor, tolerance: f64) {
    assert_eq!(said.size(), measured.size(), "{what}: shapes");
    let largest = size.to_kind(Kind::Double).abs().max().double_value(&[]).max(1e-3);
    let distance = (said.to_kind(Kind::Double) - measured.to_kind(Kind::Double)).abs().max().double_value(&[]) / largest;
    // Written so that NaN fails too.
    assert!(distance <= tolerance, "the adjoint is not what the model does: {what}, {distance:e} of the largest");
}
