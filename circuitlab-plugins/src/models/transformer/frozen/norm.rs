//! Norms whose denominators are held.

use circuitlab_core::Result;
use tch::{Kind, Tensor};

use super::super::description::NormKind;
use super::super::norm::Norm;

/// A norm and its denominators at the prompt's positions.
#[derive(Debug)]
pub(super) struct FrozenNorm<'a> {
    norm: &'a Norm,
    /// `[position, .., 1]`, in the type of the model.
    scale: Tensor,
}

impl<'a> FrozenNorm<'a> {
    pub(super) fn new(norm: &'a Norm, scale: &Tensor, kind: Kind) -> Self {
        Self { norm, scale: scale.to_kind(kind) }
    }

    /// Pulls a gradient back through it; without `gain`, from before the gain is multiplied in.
    ///
    /// # Shapes
    /// `gradient: [rows, .., width]`, `positions: [rows]`; gives the gradient's shape.
    pub(super) fn pull(&self, gradient: &Tensor, positions: &Tensor, gain: bool) -> Result<Tensor> {
        let scale = self.scale.f_index_select(0, positions)?;
        let scaled = if gain { gradient * self.gain(gradient.kind()) } else { gradient.shallow_clone() } / scale;
        Ok(self.centred(scaled))
    }

    /// What it gives for a value that is zero, less what its mean takes off: its bias, or nothing.
    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.norm.bias.as_ref()
    }

    /// What it makes of a value, but for its bias.
    ///
    /// # Shapes
    /// `value: [rows, .., width]`, `positions: [rows]`.
    pub(super) fn push(&self, value: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let scale = self.scale.f_index_select(0, positions)?;
        Ok(self.centred(value.shallow_clone()) / scale * self.gain(value.kind()))
    }

    /// Gemma's gains are kept in f32.
    fn gain(&self, kind: Kind) -> Tensor {
        self.norm.gain.to_kind(kind)
    }

    /// A LayerNorm takes the mean off, which is its own adjoint.
    fn centred(&self, value: Tensor) -> Tensor {
        match self.norm.form.kind {
            NormKind::Layer => &value - value.mean_dim(-1, true, None::<Kind>),
            NormKind::Rms | NormKind::RmsPlusOne => value,
        }
    }

    /// Whether its hook `ln2.hook_normalized` stands before the gain.
    pub(super) fn shows_before_gain(&self) -> bool {
        self.norm.form.kind != NormKind::Layer
    }
}
