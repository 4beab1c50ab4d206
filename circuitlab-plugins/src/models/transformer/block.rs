//! One block.

use circuitlab_core::BlockHook;
use tch::Tensor;

use super::attention::{Attention, Surroundings};
use super::mlp::Mlp;
use super::norm::{Norm, NormHooks};
use super::walk::{BlockWalk, Halt};

/// Attention and MLP, each of which reads the residual stream and adds to it.
#[derive(Debug)]
pub(super) struct Block {
    /// Whether the MLP reads the block's input and not what attention has added to.
    pub(super) parallel: bool,
    pub(super) norm1: Option<Norm>,
    pub(super) attention: Attention,
    pub(super) post_norm1: Option<Norm>,
    pub(super) norm2: Option<Norm>,
    pub(super) mlp: Mlp,
    pub(super) post_norm2: Option<Norm>,
    /// Which of the model's rotary embeddings it has.
    pub(super) rotary: Option<usize>,
}

impl Block {
    /// # Shapes
    /// `x: [batch, position, d_model]`, and the same back.
    pub(super) fn apply(&self, x: Tensor, around: &mut Surroundings<'_>, walk: &mut BlockWalk<'_, '_>) -> Result<Tensor, Halt> {
        let pre = walk.show(BlockHook::ResidPre, x)?;
        let normed = normalized(self.norm1.as_ref(), pre.shallow_clone(), BlockHook::Ln1Scale, None, walk)?;
        let attended = self.attention.apply(&normed, around, walk)?;
        let attended = normalized(self.post_norm1.as_ref(), attended, BlockHook::Ln1PostScale, None, walk)?;
        let attended = walk.show(BlockHook::AttnOut, attended)?;
        let (mid, base) = if self.parallel {
            (walk.show(BlockHook::ResidMid, pre.shallow_clone())?, pre + attended)
        } else {
            let mid = walk.show(BlockHook::ResidMid, pre + attended)?;
            (mid.shallow_clone(), mid)
        };
        let normed = normalized(self.norm2.as_ref(), mid, BlockHook::Ln2Scale, Some(BlockHook::Ln2Normalized), walk)?;
        let normed = walk.show(BlockHook::MlpIn, normed)?;
        let raw = walk.show(BlockHook::MlpRawOut, self.mlp.apply(&normed))?;
        let added = normalized(self.post_norm2.as_ref(), raw, BlockHook::Ln2PostScale, None, walk)?;
        let added = walk.show(BlockHook::MlpOut, added)?;
        walk.show(BlockHook::ResidPost, base + added)
    }

    /// Whether it ever reaches a place.
    pub(super) fn has(&self, hook: BlockHook) -> bool {
        match hook {
            BlockHook::Ln1Scale => self.norm1.is_some(),
            BlockHook::Ln2Scale | BlockHook::Ln2Normalized => self.norm2.is_some(),
            BlockHook::Ln1PostScale => self.post_norm1.is_some(),
            BlockHook::Ln2PostScale => self.post_norm2.is_some(),
            BlockHook::QueryNormScale | BlockHook::KeyNormScale => self.attention.norms.is_some(),
            BlockHook::AttnGate => self.attention.gated,
            _ => true,
        }
    }
}

/// What a norm makes of a value, or the value itself where there is no norm.
fn normalized(
    norm: Option<&Norm>,
    x: Tensor,
    scale: BlockHook,
    normalized: Option<BlockHook>,
    walk: &mut BlockWalk<'_, '_>,
) -> Result<Tensor, Halt> {
    let Some(norm) = norm else { return Ok(x) };
    let hooks = NormHooks { scale: walk.point(scale), normalized: normalized.map(|hook| walk.point(hook)) };
    norm.apply(&x, hooks, walk.walk)
}
