//! One block.

use circuitlab_core::BlockHook;
use tch::Tensor;

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::{Norm, NormHooks};
use super::rotary::Angles;
use super::walk::{BlockWalk, Halt};

/// A serial block: attention and MLP each read the normalized residual stream and add to it.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) norm1: Norm,
    pub(super) attention: Attention,
    pub(super) norm2: Norm,
    pub(super) mlp: Mlp,
}

impl Block {
    /// # Shapes
    /// `x: [batch, position, d_model]`, and the same back.
    pub(super) fn apply(&self, x: Tensor, angles: Option<&Angles>, walk: &mut BlockWalk<'_, '_>) -> Result<Tensor, Halt> {
        let pre = walk.show(BlockHook::ResidPre, x)?;
        let hooks = NormHooks { scale: walk.point(BlockHook::Ln1Scale), normalized: None };
        let normed = self.norm1.apply(&pre, hooks, walk.walk)?;
        let attended = self.attention.apply(&normed, angles, walk)?;
        let attended = walk.show(BlockHook::AttnOut, attended)?;
        let mid = walk.show(BlockHook::ResidMid, pre + attended)?;

        let hooks = NormHooks { scale: walk.point(BlockHook::Ln2Scale), normalized: Some(walk.point(BlockHook::Ln2Normalized)) };
        let normed = self.norm2.apply(&mid, hooks, walk.walk)?;
        let normed = walk.show(BlockHook::MlpIn, normed)?;
        let raw = walk.show(BlockHook::MlpRawOut, self.mlp.apply(&normed))?;
        let added = walk.show(BlockHook::MlpOut, raw)?;
        walk.show(BlockHook::ResidPost, mid + added)
    }
}
