//! The JumpReLU that another activation is equal to.

use tch::Tensor;

use super::{Activated, ActivationParameter, SparsityActivation};
use crate::{Init, Result, shape};

/// `a = h'` where `h' = scale * h + shift` is above `thresholds`, else 0; each is `[d_features]`.
#[derive(Debug)]
pub struct JumpForm {
    /// What the pre-activation is multiplied by, positive.
    pub scale: Tensor,
    /// What is added to it.
    pub shift: Tensor,
    /// What it must be above.
    pub thresholds: Tensor,
}

impl JumpForm {
    /// The form that leaves pre-activations as they are.
    pub fn of_thresholds(thresholds: Tensor) -> Self {
        Self { scale: thresholds.ones_like(), shift: thresholds.zeros_like(), thresholds }
    }

    /// Checks that each tensor has a number for every feature.
    ///
    /// # Errors
    /// Another shape than `[d_features]`.
    pub fn check(&self, d_features: i64) -> Result<()> {
        let axes = [("d_features", d_features)];
        shape::expect("jump form, scale", &self.scale, &axes)?;
        shape::expect("jump form, shift", &self.shift, &axes)?;
        shape::expect("jump form, thresholds", &self.thresholds, &axes)
    }

    /// The activation written out.
    ///
    /// # Shapes
    /// `pre_acts: [rows, d_features]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn activate(&self, pre_acts: &Tensor) -> Result<Activated> {
        shape::expect("jump form", pre_acts, &[("rows", -1), ("d_features", -1)])?;
        self.check(pre_acts.size()[1])?;
        let moved = pre_acts * &self.scale + &self.shift;
        let active = moved.gt_tensor(&self.thresholds);
        Ok(Activated { acts: moved * active.to_kind(self.scale.kind()), active })
    }

    /// An encoder with scale and shift in it, `W' = scale W` and `b' = scale b + shift`.
    ///
    /// # Shapes
    /// `w_enc: [d_features, d_model]`, `b_enc: [d_features]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn fold(&self, w_enc: &Tensor, b_enc: &Tensor) -> Result<(Tensor, Tensor)> {
        shape::expect("jump form, w_enc", w_enc, &[("d_features", -1), ("d_model", -1)])?;
        self.check(w_enc.size()[0])?;
        shape::expect("jump form, b_enc", b_enc, &[("d_features", w_enc.size()[0])])?;
        Ok((w_enc * self.scale.unsqueeze(1), b_enc * &self.scale + &self.shift))
    }
}

/// Whether an activation has a [`jump_form`](SparsityActivation::jump_form), asked with its parameters as they start. Whoever
/// names the activation of a saved folder must agree with the transcoder that saves it.
///
/// # Errors
/// What the activation returns.
pub fn has_jump_form(activation: &dyn SparsityActivation) -> Result<bool> {
    Ok(activation.jump_form(&at_start(activation))?.is_some())
}

/// Whether a saved CLT with this activation holds thresholds, which depends on no parameter's value either.
///
/// # Errors
/// What the activation returns.
pub fn has_thresholds(activation: &dyn SparsityActivation) -> Result<bool> {
    Ok(has_jump_form(activation)? || activation.thresholds(&at_start(activation))?.is_some())
}

/// The activation's parameters as they start, of one feature.
pub(super) fn at_start(activation: &dyn SparsityActivation) -> Vec<Tensor> {
    let start = |own: ActivationParameter| {
        let value = match own.init {
            Init::Constant(value) => value,
            Init::Uniform { .. } => 0.0,
        };
        Tensor::from_slice(&[value])
    };
    activation.parameters().into_iter().map(start).collect()
}
