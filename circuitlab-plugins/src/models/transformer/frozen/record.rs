//! One forward pass, of which is kept what has to be held.

use std::cell::RefCell;
use std::collections::BTreeMap;

use circuitlab_core::{Action, BlockHook, Error, FrozenPass, HookPoint, HookVisitor, LanguageModel as _, Result, shape};
use tch::Tensor;

use super::super::forward::Transformer;
use super::super::mask::Masks;
use super::super::norm::Norm;
use super::super::rotary::Rotary;
use super::adjoint::{Frozen, FrozenBlock};
use super::attention::{FrozenAttention, KEPT_BYTES};
use super::norm::FrozenNorm;

/// Keeps what is to be held, and shows the rest to the caller's visitor.
struct Recorder<'v> {
    caller: &'v mut dyn HookVisitor,
    patterns: bool,
    values: BTreeMap<HookPoint, Tensor>,
}

impl Recorder<'_> {
    fn keeps(&self, point: HookPoint) -> bool {
        use BlockHook::{Key, KeyNormScale, Ln1PostScale, Ln1Scale, Ln2PostScale, Ln2Scale, Pattern, Query, QueryNormScale};
        match point {
            HookPoint::FinalScale
            | HookPoint::Block {
                hook: Ln1Scale | Ln1PostScale | Ln2Scale | Ln2PostScale | Query | Key | QueryNormScale | KeyNormScale,
                ..
            } => true,
            HookPoint::Block { hook: Pattern, .. } => self.patterns,
            _ => false,
        }
    }
}

impl HookVisitor for Recorder<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.keeps(point) || self.caller.wants(point)
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        if self.keeps(point) {
            // Prompts come one at a time.
            self.values.insert(point, value.f_squeeze_dim(0)?);
        }
        if !self.caller.wants(point) {
            return Ok(Action::Continue);
        }
        match self.caller.visit(point, value)? {
            Action::Continue => Ok(Action::Continue),
            Action::Replace(_) | Action::Stop => {
                Err(Error::Invalid(format!("a model is made linear at a whole forward pass; a visitor replaced or stopped at `{point}`")))
            }
        }
    }
}

/// Runs a prompt and keeps what has to be held.
pub(in super::super) fn freeze<'a>(model: &'a Transformer, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<FrozenPass<'a>> {
    shape::expect("freeze, tokens", tokens, &[("batch", 1), ("position", -1)])?;
    let positions = tokens.size()[1];
    let info = model.info();
    let pattern_bytes = (info.layers * info.heads) as i64 * positions * positions * 4;
    let mut recorder = Recorder { caller: visitor, patterns: pattern_bytes <= KEPT_BYTES, values: BTreeMap::new() };
    let logits = model.forward(tokens, &mut recorder)?.ok_or_else(|| Error::Invalid(format!("model `{}` gave no logits", info.name)))?;
    let mut values = recorder.values;
    let frozen = Frozen {
        positions,
        masks: RefCell::new(Masks::new(positions, positions, model.placement.0)),
        angles: model.rotaries.iter().map(|rotary: &Rotary| rotary.angles(0, positions)).collect(),
        final_norm: norm(model, Some(&model.final_norm), HookPoint::FinalScale, &mut values)?,
        blocks: (0..info.layers).map(|layer| block(model, layer, &mut values)).collect::<Result<_>>()?,
    };
    Ok(FrozenPass {
        logits: logits.f_squeeze_dim(0)?,
        parallel: model.blocks.first().is_some_and(|block| block.parallel),
        positions: model.positions.as_ref().map(|table| table.f_narrow(0, 0, positions)).transpose()?,
        unembedding: model.unembedding.weight.shallow_clone(),
        score_scales: model.blocks.iter().map(|block| block.attention.scale).collect(),
        adjoint: Box::new(frozen),
    })
}

type Values = BTreeMap<HookPoint, Tensor>;

fn norm<'a>(model: &Transformer, norm: Option<&'a Norm>, point: HookPoint, values: &mut Values) -> Result<Option<FrozenNorm<'a>>> {
    let Some(norm) = norm else { return Ok(None) };
    Ok(Some(FrozenNorm::new(norm, &taken(values, point)?, model.placement.1)))
}

fn taken(values: &mut Values, point: HookPoint) -> Result<Tensor> {
    values.remove(&point).ok_or_else(|| Error::Invalid(format!("the forward pass did not show `{point}`")))
}

fn block<'a>(model: &'a Transformer, layer: usize, values: &mut Values) -> Result<FrozenBlock<'a>> {
    let block = &model.blocks[layer];
    let point = |hook| HookPoint::block(layer, hook);
    let norms = block.attention.norms.as_ref();
    let attention = FrozenAttention {
        layer,
        attention: &block.attention,
        before: norm(model, block.norm1.as_ref(), point(BlockHook::Ln1Scale), values)?,
        after: norm(model, block.post_norm1.as_ref(), point(BlockHook::Ln1PostScale), values)?,
        query_norm: norm(model, norms.map(|norms| &norms.query), point(BlockHook::QueryNormScale), values)?,
        key_norm: norm(model, norms.map(|norms| &norms.key), point(BlockHook::KeyNormScale), values)?,
        pattern: values.remove(&point(BlockHook::Pattern)),
        query: taken(values, point(BlockHook::Query))?,
        key: taken(values, point(BlockHook::Key))?,
    };
    Ok(FrozenBlock {
        attention,
        rotary: block.rotary,
        mlp_norm: norm(model, block.norm2.as_ref(), point(BlockHook::Ln2Scale), values)?,
        mlp_post_norm: norm(model, block.post_norm2.as_ref(), point(BlockHook::Ln2PostScale), values)?,
    })
}
