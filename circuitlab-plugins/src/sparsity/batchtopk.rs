//! `batchtopk`: in each batch the largest pre-activations of a layer fire, on average `k` of a row.
//!
//! Bussmann et al. 2024, "`BatchTopK` sparse autoencoders": rows that need more features take them from rows that need fewer. A row
//! alone has no batch, so that at inference it is a `JumpReLU` at the smallest active pre-activation, averaged over training.

use circuitlab_core::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, Construct, Error, Init, JumpForm, Result, Scope,
    SparsityActivation, Update, shape,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::threshold;

register!(activation "batchtopk" => BatchTopKConfig, "a = h for the k * rows largest of a batch, else 0; saved as jumprelu");

/// A threshold that no batch has set yet: active pre-activations are positive.
const UNSET: f64 = -1.0;

/// Settings of `batchtopk`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchTopKConfig {
    /// Active features of a row and layer, on average over the batch; all of them where a layer has fewer. Default 32.
    pub k: usize,
    /// What a step leaves of the running threshold, from 0 to below 1: it is a mean over about `1 / (1 - decay)` steps. Default
    /// 0.999; a run of a few hundred steps wants less.
    pub decay: f64,
}

impl Default for BatchTopKConfig {
    fn default() -> Self {
        Self { k: 32, decay: 0.999 }
    }
}

/// `a = h` for the `k * rows` largest positive `h` of a batch, else 0.
#[derive(Debug, Clone)]
pub struct BatchTopK {
    config: BatchTopKConfig,
}

impl Construct for BatchTopKConfig {
    type Output = BatchTopK;

    fn construct(&self) -> Result<BatchTopK> {
        threshold::check_k("activation `batchtopk`, key `k`", self.k)?;
        if !(0.0..1.0).contains(&self.decay) {
            let what = format!("expected a number from 0 to below 1, got {}", self.decay);
            return Err(Error::config("activation `batchtopk`, key `decay`", what));
        }
        Ok(BatchTopK { config: self.clone() })
    }
}

impl BatchTopK {
    /// The running threshold after a batch: `decay * threshold + (1 - decay) * smallest active pre-activation`, the latter alone in
    /// the first batch, and what it was where nothing fired.
    fn follow(&self, activated: &Activated, before: &Tensor) -> Tensor {
        let smallest = activated.acts.masked_fill(&activated.active.logical_not(), f64::INFINITY).min();
        let moved = before * self.config.decay + &smallest * (1.0 - self.config.decay);
        let followed = smallest.expand_as(before).where_self(&before.lt(0.0), &moved);
        followed.where_self(&smallest.isfinite(), before)
    }
}

impl SparsityActivation for BatchTopK {
    fn parameters(&self) -> Vec<ActivationParameter> {
        vec![ActivationParameter { name: "running_threshold", init: Init::Constant(UNSET), update: Update::Tracked }]
    }

    fn scope(&self) -> Scope {
        Scope::Batch
    }

    /// Exactly `k * rows` entries fire, or as many as are positive. Of equal ones any.
    fn activate(&self, pre_acts: &Tensor, _: &[Tensor]) -> Result<Activated> {
        shape::expect("activate", pre_acts, &[("rows", -1), ("d_features", -1)])?;
        let most = i64::try_from(self.config.k).unwrap_or(i64::MAX).saturating_mul(pre_acts.size()[0]);
        // Among the positive entries alone: over all of [1024, 8192] it took 124 ms, over the sixth of them that was positive 40.
        let flat = pre_acts.detach().reshape([-1]);
        let mut places = flat.gt(0.0).nonzero().reshape([-1]);
        if places.numel() as i64 > most {
            let (_, largest) = flat.f_index_select(0, &places)?.f_topk(most, 0, true, false)?;
            places = places.f_index_select(0, &largest)?;
        }
        let mut active = Tensor::f_zeros(flat.size(), (Kind::Bool, flat.device()))?;
        let _ = active.f_index_fill_(0, &places, 1_i64)?;
        let active = active.view_as(pre_acts);
        Ok(Activated { acts: pre_acts * &active, active })
    }

    /// As for `relu`, with the support in place of the sign: which entries are the largest has no gradient.
    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients> {
        let before = threshold::only("activation `batchtopk`", input.params)?;
        let share = input.pre_acts.size()[0] as f64 / input.mean_rows.max(1) as f64;
        let followed = self.follow(input.activated, before) * share;
        let zeros = threshold::zeros(input.pre_acts);
        Ok(threshold::backward(input, &zeros, None)?.with_params(vec![followed]))
    }

    /// None: a batch's threshold is known when it has been seen, and the pre-activation term must not move with it.
    fn thresholds(&self, _: &[Tensor]) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn jump_form(&self, params: &[Tensor]) -> Result<Option<JumpForm>> {
        Ok(Some(JumpForm::of_thresholds(threshold::only("activation `batchtopk`", params)?.clamp_min(0.0))))
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let theta = thresholds
            .ok_or_else(|| Error::Invalid("activation `batchtopk` needs thresholds, and the folder holds none; use `relu`".to_owned()))?;
        Ok(vec![theta.copy()])
    }
}
