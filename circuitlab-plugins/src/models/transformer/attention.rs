//! Causal attention with grouped queries.

use circuitlab_core::{BlockHook, HookPoint};
use tch::Tensor;

use super::mask::Masks;
use super::norm::{Norm, NormHooks, widened};
use super::rotary::Angles;
use super::walk::{BlockWalk, Halt};
use super::weights::Linear;

/// The attention of a block.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) d_head: i64,
    pub(super) scale: f64,
    /// Soft cap of scores.
    pub(super) cap: Option<f64>,
    /// How many keys a query sees, its own included.
    pub(super) window: Option<i64>,
    /// Whether the pattern is multiplied by 1 where the score is above 0 and by 0 elsewhere.
    pub(super) gated: bool,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) norms: Option<QueryKeyNorms>,
    pub(super) output: Linear,
}

/// Norms of queries and keys.
#[derive(Debug)]
pub(super) struct QueryKeyNorms {
    /// Whether one norm spans all heads.
    pub(super) all_heads: bool,
    pub(super) query: Norm,
    pub(super) key: Norm,
}

/// What a forward pass hands to the attention of each block.
pub(super) struct Surroundings<'a> {
    /// The rotary angles of this block.
    pub(super) angles: Option<&'a Angles>,
    pub(super) masks: &'a mut Masks,
    /// Keys and values of earlier tokens, to which this block's are added.
    pub(super) past: Option<&'a mut (Tensor, Tensor)>,
}

impl Attention {
    /// # Shapes
    /// `x: [batch, position, d_model]`, and the same back.
    pub(super) fn apply(&self, x: &Tensor, around: &mut Surroundings<'_>, walk: &mut BlockWalk<'_, '_>) -> Result<Tensor, Halt> {
        let turned = |x: Tensor| if let Some(angles) = around.angles { angles.rotate(&x) } else { x };
        let norms = self.norms.as_ref();
        let scale = walk.point(BlockHook::QueryNormScale);
        let query = normed(&self.query.apply(x), self.heads, norms.map(|norms| (&norms.query, norms.all_heads)), scale, walk)?;
        let query = walk.show(BlockHook::Query, turned(query))?;
        let scale = walk.point(BlockHook::KeyNormScale);
        let key = normed(&self.key.apply(x), self.kv_heads, norms.map(|norms| (&norms.key, norms.all_heads)), scale, walk)?;
        let mut key = walk.show(BlockHook::Key, turned(key))?;
        let mut value = walk.show(BlockHook::Value, split(&self.value.apply(x), self.kv_heads))?;
        if let Some(past) = &mut around.past {
            let joined =
                |before: &Tensor, new: &Tensor| if before.numel() == 0 { new.shallow_clone() } else { Tensor::cat(&[before, new], 1) };
            **past = (joined(&past.0, &key), joined(&past.1, &value));
            (key, value) = (past.0.shallow_clone(), past.1.shallow_clone());
        }
        let watched = walk.wants(BlockHook::Pattern) || walk.wants(BlockHook::AttnGate);
        let mixed = if watched || self.gated || self.cap.is_some() {
            let pattern = self.pattern_of(&query, &key, around.masks, walk)?;
            self.mix(&pattern, &value)
        } else {
            self.fused(&query, &key, &value, around.masks)
        };
        let mixed = walk.show(BlockHook::Mixed, mixed)?;
        Ok(self.output.apply(&mixed.flatten(2, 3)))
    }

    /// `softmax(cap(query key^T scale))` over the keys that each query sees, times the gate where there is one.
    ///
    /// # Shapes
    /// `query: [batch, position, head, d_head]`, `key: [batch, position, kv_head, d_head]`, of all heads or some; gives
    /// `[batch, head, query, key]`.
    pub(super) fn pattern_of(&self, query: &Tensor, key: &Tensor, masks: &mut Masks, walk: &mut BlockWalk<'_, '_>) -> Result<Tensor, Halt> {
        let (batch, positions, heads, kv_heads) = (query.size()[0], query.size()[1], query.size()[2], key.size()[2]);
        // The queries of a group are stacked, so that their shared key is not repeated in memory.
        let stacked = (query * self.scale).transpose(1, 2).reshape([batch, kv_heads, -1, self.d_head]);
        let mut scores = stacked.matmul(&key.permute([0, 2, 3, 1])).view([batch, heads, positions, key.size()[1]]);
        if let Some(cap) = self.cap {
            scores = capped(&scores, cap);
        }
        let scores = scores.masked_fill(masks.hidden(self.window), f64::NEG_INFINITY);
        let pattern = scores.softmax(-1, widened(query.kind())).to_kind(query.kind());
        // Not in place: a backward pass needs the softmax as it was.
        let pattern = if self.gated { pattern * walk.show(BlockHook::AttnGate, scores.gt(0.0).to_kind(query.kind()))? } else { pattern };
        walk.show(BlockHook::Pattern, pattern)
    }

    /// Values mixed by the pattern.
    ///
    /// # Shapes
    /// `pattern: [batch, head, query, key]`, `value: [batch, position, kv_head, d_head]`; gives `[batch, position, head, d_head]`.
    fn mix(&self, pattern: &Tensor, value: &Tensor) -> Tensor {
        let (batch, positions, keys) = (pattern.size()[0], pattern.size()[2], pattern.size()[3]);
        let stacked = pattern.reshape([batch, self.kv_heads, -1, keys]);
        stacked.matmul(&value.transpose(1, 2)).view([batch, self.heads, positions, self.d_head]).transpose(1, 2)
    }

    /// The same as [`mix`](Self::mix) of [`pattern_of`](Self::pattern_of), without the pattern in memory.
    fn fused(&self, query: &Tensor, key: &Tensor, value: &Tensor, masks: &mut Masks) -> Tensor {
        let by_head = |x: &Tensor| x.transpose(1, 2);
        let grouped = self.kv_heads != self.heads;
        let causal = masks.is_plainly_causal(self.window);
        let seen = if causal || masks.is_open(self.window) { None } else { Some(masks.seen(self.window)) };
        let (query, key, value) = (by_head(query), by_head(key), by_head(value));
        Tensor::scaled_dot_product_attention(&query, &key, &value, seen, 0.0, causal, self.scale, grouped).transpose(1, 2)
    }
}

/// `cap * tanh(x / cap)`.
pub(super) fn capped(x: &Tensor, cap: f64) -> Tensor {
    (x / cap).tanh() * cap
}

/// `[batch, position, heads * d_head]` to `[batch, position, heads, d_head]`.
fn split(x: &Tensor, heads: i64) -> Tensor {
    x.unflatten(-1, [heads, -1])
}

/// Splits into heads, with a norm over each of them, or over all together, where there is one.
fn normed(x: &Tensor, heads: i64, norm: Option<(&Norm, bool)>, scale: HookPoint, walk: &mut BlockWalk<'_, '_>) -> Result<Tensor, Halt> {
    match norm {
        None => Ok(split(x, heads)),
        Some((norm, false)) => norm.apply(&split(x, heads), NormHooks { scale, normalized: None }, walk.walk),
        Some((norm, true)) => {
            let joined = norm.apply(&x.unsqueeze(2), NormHooks { scale, normalized: None }, walk.walk)?;
            Ok(split(&joined.squeeze_dim(2), heads))
        }
    }
}
