//! `gated`: whether a feature fires and how strongly are two functions of one pre-activation, with the weights of both tied.
//!
//! Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", section 3, without the auxiliary
//! loss: the gate learns through the bias that it shares with the magnitude, and from the pre-activation term.

use circuitlab_core::tch::Tensor;
use circuitlab_core::{Activated, ActivationParameter, Construct, Error, Init, JumpForm, Result, SparsityActivation, Update, register};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(activation "gated" => GatedConfig, "a = relu(exp(r) h + c) where h is positive, else 0, with learned r and c");
circuitlab_core::export_plugin!();

/// Settings of `gated`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GatedConfig {
    /// The magnitude of every feature at the start, `exp(r)`. Default 1.
    pub scale: f64,
}

impl Default for GatedConfig {
    fn default() -> Self {
        Self { scale: 1.0 }
    }
}

/// `a = relu(exp(r) h + c) * 1[h > 0]`.
#[derive(Debug, Clone)]
pub struct Gated {
    scale: f64,
}

impl Construct for GatedConfig {
    type Output = Gated;

    fn construct(&self) -> Result<Gated> {
        if self.scale > 0.0 && self.scale.is_finite() {
            return Ok(Gated { scale: self.scale });
        }
        Err(Error::config("activation `gated`, key `scale`", format!("expected a positive number, got {}", self.scale)))
    }
}

/// Logarithm of the magnitude's scale, `r`, and its bias, `c`: `[d_features]` each.
fn magnitude(params: &[Tensor]) -> Result<(&Tensor, &Tensor)> {
    match params {
        [log_scale, bias] => Ok((log_scale, bias)),
        _ => Err(Error::Invalid(format!("activation `gated` has 2 parameters, {} came", params.len()))),
    }
}

impl SparsityActivation for Gated {
    fn parameters(&self) -> Vec<ActivationParameter> {
        let trained = |name, start| ActivationParameter { name, init: Init::Constant(start), update: Update::Gradient };
        vec![trained("log_scale", self.scale.ln()), trained("magnitude_bias", 0.0)]
    }

    /// The gate has no gradient, the magnitude has: the backward pass is the trait's own, by autograd.
    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated> {
        let (log_scale, bias) = magnitude(params)?;
        let strength = pre_acts.f_mul(&log_scale.exp())?.f_add(bias)?;
        let active = pre_acts.gt(0.0).logical_and(&strength.gt(0.0));
        Ok(Activated { acts: strength * &active, active })
    }

    /// Where both `h` and `exp(r) h + c` are positive: above `max(0, -c / exp(r))`.
    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>> {
        let (log_scale, bias) = magnitude(params)?;
        Ok(Some(bias.f_div(&log_scale.exp())?.neg().relu()))
    }

    /// With `h' = exp(r) h + c` the gate `h > 0` is `h' > c`, so that `a = h'` where `h' > max(c, 0)`.
    fn jump_form(&self, params: &[Tensor]) -> Result<Option<JumpForm>> {
        let (log_scale, bias) = magnitude(params)?;
        Ok(Some(JumpForm { scale: log_scale.exp(), shift: bias.copy(), thresholds: bias.relu() }))
    }

    /// Folders are saved in the jump form and read with `jumprelu`, so this is for whoever starts from thresholds: `a = relu(h - theta)`
    /// has them.
    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        match thresholds {
            Some(theta) if theta.numel() == 0 || theta.min().double_value(&[]) >= 0.0 => Ok(vec![theta.zeros_like(), theta.neg()]),
            _ => Err(Error::Invalid("activation `gated` needs thresholds that are not negative".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_where_gate_and_magnitude_are_positive() {
        let gated = GatedConfig::default().construct().expect("in range");
        let params = [Tensor::from_slice(&[2.0_f64.ln(); 4]), Tensor::from_slice(&[1.0, 1.0, -3.0, -3.0])];
        let pre_acts = Tensor::from_slice(&[1.0, -0.1, 1.0, 2.0]).view([1, 4]);
        let acts = gated.activate(&pre_acts, &params).expect("fits").acts;
        let apart = (acts - Tensor::from_slice(&[3.0, 0.0, 0.0, 1.0])).abs().max().double_value(&[]);
        assert!(apart < 1e-12, "the second is shut by its gate, the third by its magnitude; {apart} apart");
        let thresholds = gated.thresholds(&params).expect("fits").expect("it has some");
        assert_eq!(thresholds, Tensor::from_slice(&[0.0, 0.0, 1.5, 1.5]));
    }
}
