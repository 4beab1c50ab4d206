//! The suite of language models.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::adjoint;
use crate::hooks::NoHooks;
use crate::{Action, BlockHook, HookPoint, HookVisitor, LanguageModel, ModelInfo, Past, Result};

/// Checks a model against the contract of [`LanguageModel`]: its hook points in order and with their shapes; that a value
/// replaced by itself changes nothing and by another changes the logits; that a stopped pass ends; that tokens and
/// replacements which do not fit are errors; that rows of a batch do not touch each other, nor later tokens earlier ones; that a
/// pass in parts is a whole one; that its adjoint, where it states one, is what forward passes do.
///
/// Pass a small model: the suite runs some five forward passes per hook point, on at most eight positions. Values are
/// compared with a tolerance of 1e-4 of the largest logit, or 3e-2 for 16-bit types.
///
/// # Panics
/// When the model does not conform; the message says in what.
pub fn conforms(model: &dyn LanguageModel) {
    let tokens = sample(model.info());
    let plain = logits(model, &tokens, &mut NoHooks);
    hooks_come_in_order_and_shape(model, &tokens, &plain);
    for point in model.hook_points() {
        replacing_takes_effect(model, &tokens, &plain, point);
        stopping_stops(model, &tokens, point);
        wrong_shapes_are_refused(model, &tokens, point);
    }
    a_visitors_error_comes_back(model, &tokens);
    bad_tokens_are_refused(model);
    rows_are_independent(model, &tokens, &plain);
    later_tokens_do_not_reach_back(model, &tokens, &plain);
    extending_is_a_pass_in_parts(model, &tokens, &plain);
    a_visitor_changes_a_pass_in_parts(model, &tokens);
    adjoint::is_what_the_model_does(model, &tokens);
}

/// Two rows of different tokens that spread over the vocabulary.
fn sample(info: &ModelInfo) -> Tensor {
    let positions = info.context.min(8);
    let ids: Vec<i64> = (0..2 * positions).map(|place| ((place * place * 7 + place * 3 + 1) % info.vocabulary) as i64).collect();
    Tensor::from_slice(&ids).view([2, positions as i64])
}

fn logits(model: &dyn LanguageModel, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Tensor {
    model.forward(tokens, visitor).expect("the forward pass succeeds").expect("a pass that is not stopped gives logits")
}

/// The largest difference, relative to the largest value of `b`.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (&a - &b).abs().max().double_value(&[]) / b.abs().max().double_value(&[]).max(1e-12)
}

fn tolerance(model: &dyn LanguageModel) -> f64 {
    match model.placement().1 {
        Kind::Half | Kind::BFloat16 => 3e-2,
        _ => 1e-4,
    }
}

fn assert_close(model: &dyn LanguageModel, a: &Tensor, b: &Tensor, what: &str) {
    let distance = distance(a, b);
    // Written so that NaN fails too.
    assert!(distance <= tolerance(model), "{what}: logits differ by {distance:e} of the largest");
}

/// What a visitor does at the one place that it wants.
type React<'a> = Box<dyn FnMut(&Tensor) -> Result<Action> + 'a>;

struct At<'a> {
    point: HookPoint,
    visits: usize,
    react: React<'a>,
}

impl<'a> At<'a> {
    fn new(point: HookPoint, react: impl FnMut(&Tensor) -> Result<Action> + 'a) -> Self {
        Self { point, visits: 0, react: Box::new(react) }
    }
}

impl HookVisitor for At<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        point == self.point
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        assert_eq!(point, self.point, "a visitor is shown only what it wants");
        self.visits += 1;
        (self.react)(value)
    }
}

/// Wants everything, and stops at one place if told to.
#[derive(Default)]
struct Everything {
    seen: Vec<HookPoint>,
    sizes: BTreeMap<HookPoint, Vec<i64>>,
    stop_at: Option<HookPoint>,
}

impl HookVisitor for Everything {
    fn wants(&self, _: HookPoint) -> bool {
        true
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        self.seen.push(point);
        self.sizes.insert(point, value.size());
        Ok(if self.stop_at == Some(point) { Action::Stop } else { Action::Continue })
    }
}

fn hooks_come_in_order_and_shape(model: &dyn LanguageModel, tokens: &Tensor, plain: &Tensor) {
    let mut all = Everything::default();
    let watched = logits(model, tokens, &mut all);
    assert_eq!(all.seen, model.hook_points(), "the places in the order of the forward pass are those of `hook_points`");
    for (point, size) in &all.sizes {
        let mut expected = shape(model.info(), tokens, *point);
        if matches!(point, HookPoint::Block { hook: BlockHook::QueryNormScale | BlockHook::KeyNormScale, .. }) && size.get(2) == Some(&1) {
            // One norm spans all heads.
            expected[2] = 1;
        }
        assert_eq!(size, &expected, "shape at `{point}`");
    }
    assert_eq!(plain.size(), shape(model.info(), tokens, HookPoint::Logits), "shape of the logits");
    assert_close(model, &watched, plain, "a visitor that only looks");
}

/// The shape that [`HookPoint`] and [`BlockHook`] document.
fn shape(info: &ModelInfo, tokens: &Tensor, point: HookPoint) -> Vec<i64> {
    let rest = match point {
        HookPoint::Embed => vec![info.d_model],
        HookPoint::FinalScale => vec![1],
        HookPoint::Logits => vec![info.vocabulary],
        HookPoint::Block { hook, .. } => match hook {
            BlockHook::Ln1Scale | BlockHook::Ln2Scale | BlockHook::Ln1PostScale | BlockHook::Ln2PostScale => vec![1],
            BlockHook::QueryNormScale => vec![info.heads, 1],
            BlockHook::KeyNormScale => vec![info.kv_heads, 1],
            BlockHook::Query | BlockHook::Mixed => vec![info.heads, info.d_head],
            BlockHook::Key | BlockHook::Value => vec![info.kv_heads, info.d_head],
            BlockHook::Pattern | BlockHook::AttnGate => {
                let positions = tokens.size()[1];
                return vec![tokens.size()[0], info.heads as i64, positions, positions];
            }
            _ => vec![info.d_model],
        },
    };
    tokens.size().into_iter().chain(rest.into_iter().map(|size| size as i64)).collect()
}

fn replacing_takes_effect(model: &dyn LanguageModel, tokens: &Tensor, plain: &Tensor, point: HookPoint) {
    let mut same = At::new(point, |value| Ok(Action::Replace(value.copy())));
    assert_close(model, &logits(model, tokens, &mut same), plain, &format!("`{point}` replaced by itself"));
    assert_eq!(same.visits, 1, "visits at `{point}`");

    let mut other = At::new(point, |value| Ok(Action::Replace(changed(value))));
    let moved = distance(&logits(model, tokens, &mut other), plain);
    // NaN counts as a change here: what is asked is only that the replacement is used.
    assert!(moved.is_nan() || moved > 0.0, "`{point}` replaced by another value: the logits are as before");
}

/// Another value in each entry, in no proportion to the old one: norms and softmax would undo a common factor or offset.
fn changed(value: &Tensor) -> Tensor {
    let ramp = Tensor::arange(value.numel() as i64, (Kind::Float, value.device())) * 0.37;
    let wave = (ramp.sin() * 0.5 + 1.0).reshape(value.size()).to_kind(value.kind());
    value * &wave + wave
}

fn stopping_stops(model: &dyn LanguageModel, tokens: &Tensor, point: HookPoint) {
    let mut visitor = Everything { stop_at: Some(point), ..Everything::default() };
    let outcome = model.forward(tokens, &mut visitor).expect("a stopped pass is no error");
    assert!(outcome.is_none(), "a pass stopped at `{point}` gives no logits");
    assert_eq!(visitor.seen.last(), Some(&point), "nothing is visited after a stop at `{point}`");
}

fn wrong_shapes_are_refused(model: &dyn LanguageModel, tokens: &Tensor, point: HookPoint) {
    for wrong in [|value: &Tensor| value.unsqueeze(0), |value: &Tensor| value.narrow(0, 0, 1).copy()] {
        let mut visitor = At::new(point, |value| Ok(Action::Replace(wrong(value))));
        assert!(model.forward(tokens, &mut visitor).is_err(), "a replacement of another shape at `{point}` is an error");
    }
}

fn a_visitors_error_comes_back(model: &dyn LanguageModel, tokens: &Tensor) {
    let mut visitor = At::new(HookPoint::Embed, |_| Err(crate::Error::Invalid("the visitor's own".into())));
    let error = model.forward(tokens, &mut visitor).expect_err("a visitor's error ends the pass");
    assert_eq!(error.to_string(), "the visitor's own", "a visitor's error comes back as it is");
}

fn bad_tokens_are_refused(model: &dyn LanguageModel) {
    let info = model.info();
    let refused = |tokens: &Tensor, what: &str| {
        let outcome = model.forward(tokens, &mut NoHooks);
        assert!(outcome.is_err(), "{what} is an error");
    };
    refused(&Tensor::from_slice(&[0, info.vocabulary as i64]).view([1, 2]), "a token beyond the vocabulary");
    refused(&Tensor::from_slice(&[0, -1_i64]).view([1, 2]), "a negative token");
    refused(&Tensor::zeros([1, info.context as i64 + 1], (Kind::Int64, tch::Device::Cpu)), "a context that is too long");
    refused(&Tensor::from_slice(&[0_i64, 0]), "tokens without a batch axis");
    refused(&Tensor::zeros([1, 2], (Kind::Float, tch::Device::Cpu)), "tokens that are no int64");
    refused(&Tensor::zeros([1, 0], (Kind::Int64, tch::Device::Cpu)), "no token at all");
}

fn rows_are_independent(model: &dyn LanguageModel, tokens: &Tensor, plain: &Tensor) {
    for row in 0..tokens.size()[0] {
        let alone = logits(model, &tokens.narrow(0, row, 1), &mut NoHooks);
        assert_close(model, &alone, &plain.narrow(0, row, 1), &format!("row {row} without the others of its batch"));
    }
}

fn extending_is_a_pass_in_parts(model: &dyn LanguageModel, tokens: &Tensor, plain: &Tensor) {
    let count = tokens.size()[1];
    let mut past = Past::default();
    let mut done = 0;
    for step in [count / 2, 1, 1, count] {
        let step = step.min(count - done);
        if step == 0 {
            continue;
        }
        let embedded = std::cell::Cell::new(0);
        let mut visitor = At::new(HookPoint::Embed, |value| {
            embedded.set(value.size()[1]);
            Ok(Action::Continue)
        });
        let next = model.extend(&tokens.narrow(1, done, step), &mut past, &mut visitor).expect("further tokens are run");
        let next = next.expect("a pass that is not stopped gives logits");
        done += step;
        let embedded = embedded.get();
        assert!(embedded == step || embedded == done, "a visitor is shown {embedded} positions, of which {step} are new and {done} all");
        assert_eq!(past.positions(), done, "positions of the past");
        assert_close(model, &next, &plain.select(1, done - 1), &format!("position {} of a pass in parts", done - 1));
    }
    let beyond = Tensor::zeros([tokens.size()[0], model.info().context as i64 - done + 1], (Kind::Int64, tch::Device::Cpu));
    assert!(model.extend(&beyond, &mut past, &mut NoHooks).is_err(), "a past that outgrows the context is an error");
}

/// Adds the same to what the last block's MLP adds at every position from one on, whichever positions it is shown.
struct Shift {
    point: HookPoint,
    from: i64,
    total: i64,
}

impl HookVisitor for Shift {
    fn wants(&self, point: HookPoint) -> bool {
        point == self.point
    }

    fn visit(&mut self, _: HookPoint, value: &Tensor) -> Result<Action> {
        let (first, positions) = (self.total - value.size()[1], value.size()[1]);
        let shifted = Tensor::arange(positions, (Kind::Int64, value.device())).ge(self.from - first).to_kind(value.kind());
        Ok(Action::Replace(value + shifted.view([1, -1, 1]) * changed(&value.narrow(1, positions - 1, 1)).sin()))
    }
}

fn a_visitor_changes_a_pass_in_parts(model: &dyn LanguageModel, tokens: &Tensor) {
    let count = tokens.size()[1];
    let points = model.hook_points();
    let Some(point) = points.iter().find(|point| matches!(point, HookPoint::Block { hook: BlockHook::MlpOut, .. })) else {
        return;
    };
    // Only the last position is changed, so that what is added in parts is what is added at once.
    let shift = |total: i64| Shift { point: *point, from: count - 1, total };
    let whole = logits(model, tokens, &mut shift(count)).select(1, count - 1);
    let mut past = Past::default();
    let mut next = None;
    for (first, length) in [(0, count - 1), (count - 1, 1)].into_iter().filter(|(_, length)| *length > 0) {
        next = model.extend(&tokens.narrow(1, first, length), &mut past, &mut shift(first + length)).expect("further tokens are run");
    }
    let next = next.expect("a pass that is not stopped gives logits");
    assert_close(model, &next, &whole, "a visitor that changes a pass in parts");
    let mut past = Past::default();
    let mut stop = At::new(*point, |_| Ok(Action::Stop));
    let stopped = model.extend(tokens, &mut past, &mut stop).expect("a stopped pass is no error");
    assert!(stopped.is_none(), "a pass in parts that is stopped gives no logits");
}

fn later_tokens_do_not_reach_back(model: &dyn LanguageModel, tokens: &Tensor, plain: &Tensor) {
    let before = tokens.size()[1] - 1;
    if before == 0 {
        return;
    }
    let other = tokens.copy();
    let last = (tokens.narrow(1, before, 1) + 1).remainder(model.info().vocabulary as i64);
    other.narrow(1, before, 1).copy_(&last);
    let changed = logits(model, &other, &mut NoHooks);
    assert_close(model, &changed.narrow(1, 0, before), &plain.narrow(1, 0, before), "earlier logits after the last token changed");
}
