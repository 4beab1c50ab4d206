//! `topk`: on each row the features with the largest pre-activations fire.
//!
//! Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3.

use circuitlab_core::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, Construct, Error, Result, Scope, SparsityActivation, shape,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::threshold;

register!(activation "topk" => TopKConfig, "a = h for the k largest of a row, else 0; no parameters");

/// Settings of `topk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TopKConfig {
    /// Active features of a row and layer; all of them where a layer has fewer. Default 32.
    pub k: usize,
    /// Whether only features with a positive pre-activation fire. Default true; other tools' `topk` keeps negative ones too.
    pub positive: bool,
}

impl Default for TopKConfig {
    fn default() -> Self {
        Self { k: 32, positive: true }
    }
}

/// `a = h` for the `k` largest `h` of a row, else 0.
#[derive(Debug, Clone)]
pub struct TopK {
    config: TopKConfig,
}

impl Construct for TopKConfig {
    type Output = TopK;

    fn construct(&self) -> Result<TopK> {
        threshold::check_k("activation `topk`, key `k`", self.k)?;
        Ok(TopK { config: self.clone() })
    }
}

impl SparsityActivation for TopK {
    fn parameters(&self) -> Vec<ActivationParameter> {
        Vec::new()
    }

    fn scope(&self) -> Scope {
        Scope::Row
    }

    /// Exactly `k` features of a row fire, or with `positive` fewer where fewer are positive. Of equal ones any.
    fn activate(&self, pre_acts: &Tensor, _: &[Tensor]) -> Result<Activated> {
        shape::expect("activate", pre_acts, &[("rows", -1), ("d_features", -1)])?;
        let k = pre_acts.size()[1].min(i64::try_from(self.config.k).unwrap_or(i64::MAX));
        // By index and not by comparing with the smallest kept value, which equal ones would join.
        let (_, places) = pre_acts.detach().f_topk(k, 1, true, false)?;
        let mut active = Tensor::f_zeros(pre_acts.size(), (Kind::Bool, pre_acts.device()))?;
        let _ = active.f_scatter_value_(1, &places, 1_i64)?;
        if self.config.positive {
            let _ = active.logical_and_(&pre_acts.gt(0.0));
        }
        Ok(Activated { acts: pre_acts * &active, active })
    }

    /// As for `relu`, with the support in place of the sign: which features are the largest has no gradient.
    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients> {
        let zeros = threshold::zeros(input.pre_acts);
        Ok(threshold::backward(input, &zeros, None)?.with_params(Vec::new()))
    }

    fn thresholds(&self, _: &[Tensor]) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        match thresholds {
            None => Ok(Vec::new()),
            Some(_) => Err(Error::Invalid("activation `topk` has no thresholds, and the folder holds some; use `jumprelu`".to_owned())),
        }
    }
}
