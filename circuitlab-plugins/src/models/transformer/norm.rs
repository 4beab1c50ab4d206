//! Norms over the residual stream.

use circuitlab_core::HookPoint;
use tch::{Kind, Tensor};

use super::description::{NormForm, NormKind};
use super::walk::{Halt, Walk};

/// A norm with its gain and, for LayerNorm, its bias.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) form: NormForm,
    /// Of Gemma's norms 1 is added already, and it is at least f32.
    pub(super) gain: Tensor,
    pub(super) bias: Option<Tensor>,
}

/// Where the inside of a norm is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct NormHooks {
    /// The denominator.
    pub(super) scale: HookPoint,
    /// What TransformerLens calls the normalized value: before an RMSNorm's gain, after a LayerNorm's gain and bias.
    pub(super) normalized: Option<HookPoint>,
}

impl Norm {
    /// Normalizes the last axis.
    ///
    /// # Shapes
    /// `x: [batch, position, d_model]`, and the same back; the scale is `[batch, position, 1]`, at least f32.
    pub(super) fn apply(&self, x: &Tensor, hooks: NormHooks, walk: &mut Walk<'_>) -> Result<Tensor, Halt> {
        let watched = walk.wants(hooks.scale) || hooks.normalized.is_some_and(|point| walk.wants(point));
        match self.form.kind {
            // libtorch's own `rms_norm` is put together from the same steps on a CPU, and measured no faster.
            NormKind::Layer if !watched => Ok(x.layer_norm(self.gain.size(), Some(&self.gain), self.bias.as_ref(), self.form.eps, false)),
            _ => self.step_by_step(x, hooks, walk),
        }
    }

    fn step_by_step(&self, x: &Tensor, hooks: NormHooks, walk: &mut Walk<'_>) -> Result<Tensor, Halt> {
        let kind = x.kind();
        let wide = x.to_kind(widened(kind));
        let centred = match self.form.kind {
            NormKind::Rms | NormKind::RmsPlusOne => wide,
            NormKind::Layer => &wide - wide.mean_dim(-1, true, None::<Kind>),
        };
        let scale = (centred.square().mean_dim(-1, true, None::<Kind>) + self.form.eps).sqrt();
        let scale = walk.show(hooks.scale, scale)?;
        let unit = centred / scale;
        match self.form.kind {
            NormKind::Rms => Ok(show(hooks.normalized, unit.to_kind(kind), walk)? * &self.gain),
            NormKind::RmsPlusOne => {
                let unit = match hooks.normalized {
                    Some(point) if walk.wants(point) => walk.show(point, unit.to_kind(kind))?,
                    _ => unit,
                };
                Ok((unit * &self.gain).to_kind(kind))
            }
            NormKind::Layer => {
                let scaled = unit * &self.gain;
                let shifted = self.bias.iter().fold(scaled, |sum, bias| sum + bias);
                show(hooks.normalized, shifted.to_kind(kind), walk)
            }
        }
    }
}

/// The type in which sums over an axis are made: 16 bits are too few for them.
pub(super) fn widened(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

fn show(point: Option<HookPoint>, value: Tensor, walk: &mut Walk<'_>) -> Result<Tensor, Halt> {
    match point {
        Some(point) => walk.show(point, value),
        None => Ok(value),
    }
}
