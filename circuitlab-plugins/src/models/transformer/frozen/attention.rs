//! The adjoint of attention whose patterns are held.

use std::cell::RefCell;

use circuitlab_core::hooks::NoHooks;
use circuitlab_core::{Error, Result, Span};
use tch::{Kind, Tensor};

use super::super::attention::Attention;
use super::super::mask::Masks;
use super::super::rotary::Angles;
use super::super::walk::{Halt, Walk};
use super::super::weights::Linear;
use super::norm::FrozenNorm;

/// Bytes of patterns that are kept for all layers together; beyond that each is made anew from queries and keys where it is asked for.
pub(super) const KEPT_BYTES: i64 = 256 << 20;

/// Bytes of patterns that are worked on at a time.
const BLOCK_BYTES: i64 = 64 << 20;

/// A block's attention at the prompt.
#[derive(Debug)]
pub(super) struct FrozenAttention<'a> {
    pub(super) layer: usize,
    pub(super) attention: &'a Attention,
    pub(super) before: Option<FrozenNorm<'a>>,
    pub(super) after: Option<FrozenNorm<'a>>,
    pub(super) query_norm: Option<FrozenNorm<'a>>,
    pub(super) key_norm: Option<FrozenNorm<'a>>,
    /// `[head, query, key]`, where it is kept.
    pub(super) pattern: Option<Tensor>,
    /// `[position, head, d_head]`.
    pub(super) query: Tensor,
    /// `[position, kv_head, d_head]`.
    pub(super) key: Tensor,
}

/// Queries or keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Query,
    Key,
}

impl FrozenAttention<'_> {
    /// Query heads that share a key.
    fn group(&self) -> i64 {
        self.attention.heads / self.attention.kv_heads
    }

    /// The pattern of some key heads and the query heads that read them: `[kv_head * group, query, key]`.
    fn pattern(&self, first: i64, kv_heads: i64, masks: &RefCell<Masks>) -> Result<Tensor> {
        let group = self.group();
        if let Some(pattern) = &self.pattern {
            return Ok(pattern.f_narrow(0, first * group, kv_heads * group)?);
        }
        let query = self.query.f_narrow(1, first * group, kv_heads * group)?.f_unsqueeze(0)?;
        let key = self.key.f_narrow(1, first, kv_heads)?.f_unsqueeze(0)?;
        let mut nobody = NoHooks;
        let mut walk = Walk::new(&mut nobody);
        let masks = &mut *masks.borrow_mut();
        match self.attention.pattern_of(&query, &key, masks, &mut walk.block(self.layer)) {
            Ok(pattern) => Ok(pattern.f_squeeze_dim(0)?),
            Err(Halt::Failed(error)) => Err(error),
            Err(Halt::Stopped) => Err(Error::Invalid("a pass without a visitor was stopped".to_owned())),
        }
    }

    /// Calls `each` with blocks of key heads: their patterns, the first of them and how many they are.
    fn by_heads(&self, masks: &RefCell<Masks>, mut each: impl FnMut(&Tensor, i64, i64) -> Result<()>) -> Result<()> {
        let positions = self.query.size()[0];
        let bytes = self.group() * positions * positions * 4;
        let most = if self.pattern.is_some() { self.attention.kv_heads } else { (BLOCK_BYTES / bytes.max(1)).max(1) };
        let mut first = 0;
        while first < self.attention.kv_heads {
            let heads = most.min(self.attention.kv_heads - first);
            each(&self.pattern(first, heads, masks)?, first, heads)?;
            first += heads;
        }
        Ok(())
    }

    /// From what attention adds to the stream to the heads' mixed values: `[rows, head, d_head]`.
    fn to_mixed(&self, gradient: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let own = match &self.after {
            Some(norm) => norm.pull(gradient, positions, true)?,
            None => gradient.shallow_clone(),
        };
        Ok(own.f_matmul(&self.attention.output.weight)?.f_view([-1, self.attention.heads, self.attention.d_head])?)
    }

    /// From values, `[rows, kv_head * d_head]`, to the stream that enters the block.
    fn through_values(&self, values: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let normed = values.f_matmul(&self.attention.value.weight)?;
        self.through_before(normed, positions)
    }

    fn through_before(&self, gradient: Tensor, positions: &Tensor) -> Result<Tensor> {
        match &self.before {
            Some(norm) => norm.pull(&gradient, positions, true),
            None => Ok(gradient),
        }
    }

    /// See [`Adjoint::attention`](circuitlab_core::Adjoint::attention); `positions` are those of the rows.
    pub(super) fn pull(&self, gradient: &Tensor, spans: &[Span], positions: &Tensor, masks: &RefCell<Masks>) -> Result<Tensor> {
        let (kv_heads, group, d_head) = (self.attention.kv_heads, self.group(), self.attention.d_head);
        let mixed = self.to_mixed(gradient, positions)?;
        let values = Tensor::f_empty([gradient.size()[0], kv_heads, d_head], (mixed.kind(), mixed.device()))?;
        self.by_heads(masks, |pattern, first, heads| {
            let mut row = 0;
            for span in spans {
                let Span { targets, positions } = *span;
                // A key's gradient adds up over the queries, and the query heads, that read it.
                let seen = pattern.f_narrow(1, 0, positions)?.f_narrow(2, 0, positions)?;
                let seen = seen.f_reshape([heads, group * positions, positions])?.f_transpose(1, 2)?;
                let read = mixed
                    .f_narrow(0, row, span.rows())?
                    .f_narrow(1, first * group, heads * group)?
                    .f_view([targets, positions, heads, group, d_head])?
                    .f_permute([2, 3, 1, 0, 4])?
                    .f_reshape([heads, group * positions, targets * d_head])?;
                let read = seen.f_matmul(&read)?.f_view([heads, positions, targets, d_head])?.f_permute([2, 1, 0, 3])?;
                let mut place =
                    values.f_narrow(0, row, span.rows())?.f_narrow(1, first, heads)?.f_view([targets, positions, heads, d_head])?;
                place.f_copy_(&read)?;
                row += span.rows();
            }
            Ok(())
        })?;
        self.through_values(&values.f_view([-1, kv_heads * d_head])?, positions)
    }

    /// See [`Adjoint::heads`](circuitlab_core::Adjoint::heads).
    pub(super) fn pull_heads(&self, gradient: &Tensor, position: i64, masks: &RefCell<Masks>) -> Result<Tensor> {
        let (heads, kv_heads, group, d_head) = (self.attention.heads, self.attention.kv_heads, self.group(), self.attention.d_head);
        let targets = gradient.size()[0];
        let options = (Kind::Int64, gradient.device());
        let at = Tensor::f_full([targets], position, options)?;
        // [kv_head, target * group, d_head] times that head's values: [kv_head, target * group, d_model].
        let mixed = self.to_mixed(gradient, &at)?.f_view([targets, kv_heads, group, d_head])?.f_permute([1, 0, 2, 3])?;
        let values = self.attention.value.weight.f_view([kv_heads, d_head, -1])?;
        let read = mixed.f_reshape([kv_heads, targets * group, d_head])?.f_matmul(&values)?;
        let read = read.f_view([kv_heads, targets, group, -1])?.f_permute([1, 0, 2, 3])?.f_reshape([targets, heads, 1, -1])?;
        let mut shares = Vec::new();
        self.by_heads(masks, |pattern, _, _| {
            shares.push(pattern.f_select(1, position)?.f_narrow(1, 0, position + 1)?.copy());
            Ok(())
        })?;
        let shares = Tensor::f_cat(&shares, 0)?.f_view([1, heads, position + 1, 1])?;
        let width = read.size()[3];
        let spread = (read * shares).f_view([-1, width])?;
        let keys = Tensor::f_arange(position + 1, options)?.f_repeat([targets * heads])?;
        Ok(self.through_before(spread, &keys)?.f_view([targets, heads, position + 1, width])?)
    }

    /// What attention adds to a stream of zeros: `[position, d_model]`.
    pub(super) fn constant(&self, masks: &RefCell<Masks>) -> Result<Tensor> {
        let positions = self.query.size()[0];
        let (heads, kv_heads, group, d_head) = (self.attention.heads, self.attention.kv_heads, self.group(), self.attention.d_head);
        let output = &self.attention.output;
        let options = (output.weight.kind(), output.weight.device());
        let zeros = Tensor::f_zeros([1, self.attention.value.weight.size()[1]], options)?;
        let read = self.before.as_ref().and_then(FrozenNorm::bias).map_or(zeros, |bias| bias.unsqueeze(0));
        let value = self.attention.value.apply(&read).f_view([kv_heads, 1, d_head])?;
        let mut mixed = Vec::new();
        self.by_heads(masks, |pattern, first, count| {
            // A gate lets less than all of the softmax through.
            let share = pattern.f_sum_dim_intlist(-1, false, None::<Kind>)?.f_view([count, group, positions, 1])?;
            mixed.push((share * value.f_narrow(0, first, count)?.f_unsqueeze(1)?).f_view([count * group, positions, d_head])?);
            Ok(())
        })?;
        let mixed = Tensor::f_cat(&mixed, 0)?.f_permute([1, 0, 2])?.f_reshape([positions, heads * d_head])?;
        let added = output.apply(&mixed);
        let Some(norm) = &self.after else { return Ok(added) };
        let at = Tensor::f_arange(positions, (Kind::Int64, added.device()))?;
        let normed = norm.push(&added, &at)?;
        Ok(norm.bias().into_iter().fold(normed, |sum, bias| sum + bias))
    }

    /// From a head's query or key to the stream that enters the block. `gradient: [rows, d_head]`, `head` a query head.
    pub(super) fn pull_side(
        &self,
        side: Side,
        head: i64,
        gradient: &Tensor,
        positions: &Tensor,
        angles: Option<&Angles>,
    ) -> Result<Tensor> {
        let (heads, own, linear, norm) = self.side(side, head);
        let turned = match angles {
            Some(angles) => angles.at(positions).rotate_back(&gradient.f_view([1, -1, 1, self.attention.d_head])?),
            None => gradient.f_view([1, -1, 1, self.attention.d_head])?,
        };
        // All heads, of which one has a gradient: a norm may span them.
        let whole = Tensor::f_zeros([gradient.size()[0], heads, self.attention.d_head], (gradient.kind(), gradient.device()))?;
        whole.f_select(1, own)?.f_copy_(&turned.f_view([-1, self.attention.d_head])?)?;
        let whole = match norm {
            Some(norm) if self.spans_heads() => norm.pull(&whole.f_flatten(1, 2)?.f_unsqueeze(1)?, positions, true)?.f_view_as(&whole)?,
            Some(norm) => norm.pull(&whole, positions, true)?,
            None => whole,
        };
        self.through_before(whole.f_flatten(1, 2)?.f_matmul(&linear.weight)?, positions)
    }

    /// A head's query or key where the stream is zero: `[rows, d_head]`.
    pub(super) fn side_constant(&self, side: Side, head: i64, positions: &Tensor, angles: Option<&Angles>) -> Result<Tensor> {
        let (heads, own, linear, norm) = self.side(side, head);
        let rows = positions.size()[0];
        let zeros = Tensor::f_zeros([1, linear.weight.size()[1]], (linear.weight.kind(), linear.weight.device()))?;
        let read = self.before.as_ref().and_then(FrozenNorm::bias).map_or(zeros, |bias| bias.unsqueeze(0));
        let whole = linear.apply(&read).f_view([1, heads, self.attention.d_head])?.f_expand([rows, -1, -1], false)?;
        let normed = match norm {
            Some(norm) if self.spans_heads() => {
                let joined = norm.push(&whole.f_flatten(1, 2)?.f_unsqueeze(1)?, positions)?;
                norm.bias().into_iter().fold(joined, |sum, bias| sum + bias).f_view([rows, heads, -1])?
            }
            Some(norm) => norm.bias().into_iter().fold(norm.push(&whole, positions)?, |sum, bias| sum + bias),
            None => whole,
        };
        let own = normed.f_select(1, own)?.f_view([1, rows, 1, -1])?;
        Ok(angles.map_or_else(|| own.shallow_clone(), |angles| angles.at(positions).rotate(&own)).f_view([rows, -1])?)
    }

    fn spans_heads(&self) -> bool {
        self.attention.norms.as_ref().is_some_and(|norms| norms.all_heads)
    }

    /// How many heads a side has, which of them a query head uses, its map and its norm.
    fn side(&self, side: Side, head: i64) -> (i64, i64, &Linear, Option<&FrozenNorm<'_>>) {
        match side {
            Side::Query => (self.attention.heads, head, &self.attention.query, self.query_norm.as_ref()),
            Side::Key => (self.attention.kv_heads, head / self.group(), &self.attention.key, self.key_norm.as_ref()),
        }
    }
}
