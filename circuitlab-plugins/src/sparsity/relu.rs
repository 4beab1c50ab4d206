//! `relu`: a feature fires where its pre-activation is positive.

use circuitlab_core::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, Construct, Error, Result, SparsityActivation, ThresholdForm,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::threshold;

register!(activation "relu" => ReLUConfig, "a = max(h, 0); no parameters");

/// No settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ReLUConfig {}

/// `a = max(h, 0)`.
#[derive(Debug, Clone, Copy)]
pub struct ReLU;

impl Construct for ReLUConfig {
    type Output = ReLU;

    fn construct(&self) -> Result<ReLU> {
        Ok(ReLU)
    }
}

impl SparsityActivation for ReLU {
    fn parameters(&self) -> Vec<ActivationParameter> {
        Vec::new()
    }

    fn activate(&self, pre_acts: &Tensor, _: &[Tensor]) -> Result<Activated> {
        threshold::activate(pre_acts, &threshold::zeros(pre_acts))
    }

    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients> {
        let theta = threshold::zeros(input.pre_acts);
        Ok(threshold::backward(input, &theta, None)?.with_params(Vec::new()))
    }

    fn threshold_form(&self, _: &[Tensor]) -> Result<Option<ThresholdForm>> {
        Ok(Some(ThresholdForm { thresholds: None, trained: None }))
    }

    fn thresholds(&self, _: &[Tensor]) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        match thresholds {
            None => Ok(Vec::new()),
            Some(_) => Err(Error::Invalid("activation `relu` has no thresholds, and the folder holds some; use `jumprelu`".to_owned())),
        }
    }
}
