//! The model's [`Adjoint`].

use std::cell::RefCell;

use circuitlab_core::{Adjoint, BlockHook, Error, Passage, Result, Span, shape};
use tch::{Kind, Tensor};

use super::super::mask::Masks;
use super::super::rotary::Angles;
use super::attention::{FrozenAttention, Side};
use super::norm::FrozenNorm;

/// A transformer at a prompt.
#[derive(Debug)]
pub(super) struct Frozen<'a> {
    pub(super) positions: i64,
    pub(super) masks: RefCell<Masks>,
    /// Of each rotary embedding that the model has.
    pub(super) angles: Vec<Angles>,
    pub(super) final_norm: Option<FrozenNorm<'a>>,
    pub(super) blocks: Vec<FrozenBlock<'a>>,
}

/// A block at a prompt.
#[derive(Debug)]
pub(super) struct FrozenBlock<'a> {
    pub(super) attention: FrozenAttention<'a>,
    pub(super) rotary: Option<usize>,
    pub(super) mlp_norm: Option<FrozenNorm<'a>>,
    pub(super) mlp_post_norm: Option<FrozenNorm<'a>>,
}

/// A norm on a passage, and whether the passage goes through its gain.
type Through<'n, 'a> = Option<(&'n FrozenNorm<'a>, bool)>;

impl<'a> Frozen<'a> {
    fn block(&self, layer: usize) -> Result<&FrozenBlock<'a>> {
        self.blocks.get(layer).ok_or_else(|| Error::Invalid(format!("there is no layer {layer}, there are {}", self.blocks.len())))
    }

    /// The norm that stands on a passage along the residual stream.
    fn through(&self, passage: Passage) -> Result<Through<'_, 'a>> {
        let wrong = |hook: BlockHook, known: &str| {
            Err(Error::Invalid(format!("`{hook}` is no place that attribution knows here; expected {known}")))
        };
        Ok(match passage {
            Passage::Final => self.final_norm.as_ref().map(|norm| (norm, true)),
            Passage::MlpInput { layer, hook } => {
                let norm = self.block(layer)?.mlp_norm.as_ref();
                match hook {
                    BlockHook::ResidMid => None,
                    BlockHook::Ln2Normalized => norm.map(|norm| (norm, !norm.shows_before_gain())),
                    BlockHook::MlpIn => norm.map(|norm| (norm, true)),
                    _ => return wrong(hook, "`hook_resid_mid`, `ln2.hook_normalized` or `mlp.hook_in`"),
                }
            }
            Passage::MlpOutput { layer, hook } => match hook {
                BlockHook::MlpOut => None,
                BlockHook::MlpRawOut => self.block(layer)?.mlp_post_norm.as_ref().map(|norm| (norm, true)),
                _ => return wrong(hook, "`mlp.hook_out` or `hook_mlp_out`"),
            },
            _ => None,
        })
    }

    /// A block's attention, the side, and the angles, of a passage to a head.
    fn head(&self, passage: Passage) -> Result<Option<(&FrozenBlock<'a>, Side, i64)>> {
        let (layer, head, side) = match passage {
            Passage::Query { layer, head } => (layer, head, Side::Query),
            Passage::Key { layer, head } => (layer, head, Side::Key),
            _ => return Ok(None),
        };
        let block = self.block(layer)?;
        let heads = block.attention.attention.heads;
        if head as i64 >= heads {
            return Err(Error::Invalid(format!("layer {layer} has no head {head}, it has {heads}")));
        }
        Ok(Some((block, side, head as i64)))
    }

    fn angles(&self, block: &FrozenBlock<'_>) -> Option<&Angles> {
        block.rotary.and_then(|rotary| self.angles.get(rotary))
    }

    fn check_positions(&self, positions: &Tensor, rows: i64) -> Result<()> {
        shape::expect("adjoint, positions", positions, &[("rows", rows)])?;
        if rows > 0 && (positions.f_min()?.f_int64_value(&[])? < 0 || positions.f_max()?.f_int64_value(&[])? >= self.positions) {
            return Err(Error::Invalid(format!("a position is outside of the prompt's {}", self.positions)));
        }
        Ok(())
    }
}

impl Adjoint for Frozen<'_> {
    fn pull(&self, passage: Passage, gradient: &Tensor, positions: &Tensor) -> Result<Tensor> {
        shape::expect("adjoint, pull", gradient, &[("rows", -1), ("width", -1)])?;
        self.check_positions(positions, gradient.size()[0])?;
        if let Some((block, side, head)) = self.head(passage)? {
            return block.attention.pull_side(side, head, gradient, positions, self.angles(block));
        }
        match self.through(passage)? {
            Some((norm, gain)) => norm.pull(gradient, positions, gain),
            None => Ok(gradient.shallow_clone()),
        }
    }

    fn constant(&self, passage: Passage, positions: &Tensor) -> Result<Tensor> {
        let rows = positions.size1()?;
        self.check_positions(positions, rows)?;
        if let Some((block, side, head)) = self.head(passage)? {
            return block.attention.side_constant(side, head, positions, self.angles(block));
        }
        let output = &self.block(0)?.attention.attention.output.weight;
        let zeros = Tensor::f_zeros([rows, output.size()[0]], (output.kind(), output.device()))?;
        // Where a passage ends before the gain, it ends before the bias too.
        let bias = self.through(passage)?.filter(|(_, gain)| *gain).and_then(|(norm, _)| norm.bias());
        Ok(bias.map_or_else(|| zeros.shallow_clone(), |bias| &zeros + bias))
    }

    fn attention(&self, layer: usize, gradient: &Tensor, spans: &[Span]) -> Result<Tensor> {
        let rows = spans.iter().map(|span| span.rows()).sum::<i64>();
        shape::expect("adjoint, attention", gradient, &[("rows", rows), ("d_model", -1)])?;
        if let Some(span) = spans.iter().find(|span| !(1..=self.positions).contains(&span.positions) || span.targets < 1) {
            return Err(Error::Invalid(format!("{span:?} does not fit a prompt of {} positions", self.positions)));
        }
        let options = (Kind::Int64, gradient.device());
        let each = spans.iter().map(|span| Tensor::f_arange(span.positions, options)?.f_repeat([span.targets]));
        let positions = Tensor::f_cat(&each.collect::<Result<Vec<_>, _>>()?, 0)?;
        self.block(layer)?.attention.pull(gradient, spans, &positions, &self.masks)
    }

    fn heads(&self, layer: usize, gradient: &Tensor, position: i64) -> Result<Tensor> {
        shape::expect("adjoint, heads", gradient, &[("targets", -1), ("d_model", -1)])?;
        if !(0..self.positions).contains(&position) {
            return Err(Error::Invalid(format!("position {position} is outside of the prompt's {}", self.positions)));
        }
        self.block(layer)?.attention.pull_heads(gradient, position, &self.masks)
    }

    fn attention_constant(&self, layer: usize) -> Result<Tensor> {
        self.block(layer)?.attention.constant(&self.masks)
    }
}
