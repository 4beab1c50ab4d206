//! `jumprelu`: a feature fires where its pre-activation is above a learned threshold.
//!
//! Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders",
//! equations 3 and 11: the jump has no gradient to the threshold, so a rectangle kernel of width `bandwidth` stands in.

use circuitlab_core::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, Construct, Error, Init, Result, SparsityActivation, ThresholdForm,
    TrainedThreshold, Update,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::threshold;

register!(activation "jumprelu" => JumpReLUConfig, "a = h where h is above a learned threshold, else 0");

/// How the threshold is stored and stepped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Parameterisation {
    /// The logarithm, so that the threshold stays positive.
    #[default]
    Log,
    /// The threshold itself.
    Direct,
}

/// Settings of `jumprelu`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JumpReLUConfig {
    /// The threshold of every feature at the start, in units of the normalised pre-activation. Default 0.03.
    pub threshold: f64,
    /// Width of the rectangle kernel, in the same units. Default 1.
    pub bandwidth: f64,
    /// Whether the threshold (`direct`) or its logarithm (`log`, the default) is trained.
    pub parameterisation: Parameterisation,
}

impl Default for JumpReLUConfig {
    fn default() -> Self {
        Self { threshold: 0.03, bandwidth: 1.0, parameterisation: Parameterisation::Log }
    }
}

/// `a = h * 1[h > theta]`.
#[derive(Debug, Clone)]
pub struct JumpReLU {
    config: JumpReLUConfig,
}

impl Construct for JumpReLUConfig {
    type Output = JumpReLU;

    fn construct(&self) -> Result<JumpReLU> {
        if !(self.threshold > 0.0 && self.threshold.is_finite()) {
            return Err(Error::config(
                "activation `jumprelu`, key `threshold`",
                format!("expected a positive number, got {}", self.threshold),
            ));
        }
        if !(self.bandwidth > 0.0 && self.bandwidth.is_finite()) {
            return Err(Error::config(
                "activation `jumprelu`, key `bandwidth`",
                format!("expected a positive number, got {}", self.bandwidth),
            ));
        }
        Ok(JumpReLU { config: self.clone() })
    }
}

impl JumpReLU {
    fn theta(&self, params: &[Tensor]) -> Result<Tensor> {
        let stored = threshold::only("activation `jumprelu`", params)?;
        Ok(match self.config.parameterisation {
            Parameterisation::Log => stored.exp(),
            Parameterisation::Direct => stored.shallow_clone(),
        })
    }
}

impl SparsityActivation for JumpReLU {
    fn parameters(&self) -> Vec<ActivationParameter> {
        let (name, start) = match self.config.parameterisation {
            Parameterisation::Log => ("log_threshold", self.config.threshold.ln()),
            Parameterisation::Direct => ("threshold", self.config.threshold),
        };
        vec![ActivationParameter { name, init: Init::Constant(start), update: Update::Gradient }]
    }

    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated> {
        threshold::activate(pre_acts, &self.theta(params)?)
    }

    /// Beside the shared part, through the jump: `dL/dtheta -= theta / eps * sum over rows of g * 1[|h - theta| < eps / 2]`
    /// with `g` the gradient to the activations; and `dL/dlog theta = theta dL/dtheta`.
    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients> {
        let theta = self.theta(input.params)?;
        let back = threshold::backward(input, &theta, Some(self.config.bandwidth))?;
        let through_jump = back.near * &theta / self.config.bandwidth;
        let grad_theta = back.theta - through_jump;
        let grad_stored = match self.config.parameterisation {
            Parameterisation::Log => grad_theta * theta,
            Parameterisation::Direct => grad_theta,
        };
        Ok(ActivationGradients {
            sparsity: back.sparsity,
            preact: back.preact,
            pre_acts: back.pre_acts,
            params: vec![grad_stored],
            decoder_norms: back.decoder_norms,
        })
    }

    fn threshold_form(&self, params: &[Tensor]) -> Result<Option<ThresholdForm>> {
        let thresholds = self.theta(params)?;
        let slope = match self.config.parameterisation {
            Parameterisation::Log => thresholds.shallow_clone(),
            Parameterisation::Direct => thresholds.ones_like(),
        };
        Ok(Some(ThresholdForm {
            thresholds: Some(thresholds),
            trained: Some(TrainedThreshold { bandwidth: self.config.bandwidth, slope }),
        }))
    }

    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>> {
        self.theta(params).map(Some)
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let theta = thresholds
            .ok_or_else(|| Error::Invalid("activation `jumprelu` needs thresholds, and the folder holds none; use `relu`".to_owned()))?;
        match self.config.parameterisation {
            Parameterisation::Direct => Ok(vec![theta.copy()]),
            Parameterisation::Log if theta.numel() == 0 || theta.min().double_value(&[]) > 0.0 => Ok(vec![theta.log()]),
            Parameterisation::Log => {
                Err(Error::Invalid("a threshold is not positive, so it has no logarithm; use `parameterisation = \"direct\"`".to_owned()))
            }
        }
    }
}
