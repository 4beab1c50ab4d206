//! Causal attention with grouped queries.

use circuitlab_core::BlockHook;
use tch::{Kind, Tensor};

use super::norm::widened;
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
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
}

impl Attention {
    /// # Shapes
    /// `x: [batch, position, d_model]`, and the same back.
    pub(super) fn apply(&self, x: &Tensor, angles: Option<&Angles>, walk: &mut BlockWalk<'_, '_>) -> Result<Tensor, Halt> {
        let turned = |x: Tensor| angles.map_or_else(|| x.shallow_clone(), |angles| angles.rotate(&x));
        let query = walk.show(BlockHook::Query, turned(self.split(&self.query.apply(x), self.heads)))?;
        let key = walk.show(BlockHook::Key, turned(self.split(&self.key.apply(x), self.kv_heads)))?;
        let value = walk.show(BlockHook::Value, self.split(&self.value.apply(x), self.kv_heads))?;
        let mixed = if walk.wants(BlockHook::Pattern) {
            let pattern = walk.show(BlockHook::Pattern, self.pattern(&query, &key))?;
            self.mix(&pattern, &value)
        } else {
            self.fused(&query, &key, &value)
        };
        let mixed = walk.show(BlockHook::Mixed, mixed)?;
        Ok(self.output.apply(&mixed.flatten(2, 3)))
    }

    /// `[batch, position, heads * d_head]` to `[batch, position, heads, d_head]`.
    fn split(&self, x: &Tensor, heads: i64) -> Tensor {
        x.unflatten(-1, [heads, self.d_head])
    }

    /// `softmax(query key^T scale)` over the keys up to each query.
    ///
    /// # Shapes
    /// `query: [batch, position, head, d_head]`, `key: [batch, position, kv_head, d_head]`; gives `[batch, head, query, key]`.
    fn pattern(&self, query: &Tensor, key: &Tensor) -> Tensor {
        let (batch, positions) = (query.size()[0], query.size()[1]);
        // The queries of a group are stacked, so that their shared key is not repeated in memory.
        let stacked = (query * self.scale).transpose(1, 2).reshape([batch, self.kv_heads, -1, self.d_head]);
        let scores = stacked.matmul(&key.permute([0, 2, 3, 1])).view([batch, self.heads, positions, positions]);
        let future = Tensor::ones([positions, positions], (Kind::Bool, query.device())).triu(1);
        scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, widened(query.kind())).to_kind(query.kind())
    }

    /// Values mixed by the pattern.
    ///
    /// # Shapes
    /// `pattern: [batch, head, query, key]`, `value: [batch, position, kv_head, d_head]`; gives `[batch, position, head, d_head]`.
    fn mix(&self, pattern: &Tensor, value: &Tensor) -> Tensor {
        let (batch, positions) = (pattern.size()[0], pattern.size()[2]);
        let stacked = pattern.reshape([batch, self.kv_heads, -1, positions]);
        stacked.matmul(&value.transpose(1, 2)).view([batch, self.heads, positions, self.d_head]).transpose(1, 2)
    }

    /// The same as [`mix`](Self::mix) of [`pattern`](Self::pattern), without the pattern in memory.
    fn fused(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let by_head = |x: &Tensor| x.transpose(1, 2);
        let grouped = self.kv_heads != self.heads;
        Tensor::scaled_dot_product_attention(
            &by_head(query),
            &by_head(key),
            &by_head(value),
            None::<Tensor>,
            0.0,
            true,
            self.scale,
            grouped,
        )
        .transpose(1, 2)
    }
}
