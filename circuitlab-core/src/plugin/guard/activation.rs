//! Guarded sparsity activations.

use tch::Tensor;

use super::guarded::Guarded;
use crate::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, JumpForm, Result, Scope, SparsityActivation, ThresholdForm,
};

struct Facts {
    parameters: Vec<ActivationParameter>,
    scope: Scope,
}

/// Guards an activation.
///
/// # Errors
/// A panic while it names its parameters or its scope.
pub fn activation<T: SparsityActivation + 'static>(what: &'static str, made: T) -> Result<Box<dyn SparsityActivation>> {
    Ok(Box::new(Guarded::new(what, made).ask(|made| Facts { parameters: made.parameters(), scope: made.scope() })?))
}

impl<T: SparsityActivation> SparsityActivation for Guarded<T, Facts> {
    fn parameters(&self) -> Vec<ActivationParameter> {
        self.facts.parameters.clone()
    }

    fn scope(&self) -> Scope {
        self.facts.scope
    }

    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated> {
        self.call(|activation| activation.activate(pre_acts, params))
    }

    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients> {
        self.call(|activation| activation.backward(input))
    }

    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>> {
        self.call(|activation| activation.thresholds(params))
    }

    fn threshold_form(&self, params: &[Tensor]) -> Result<Option<ThresholdForm>> {
        self.call(|activation| activation.threshold_form(params))
    }

    fn jump_form(&self, params: &[Tensor]) -> Result<Option<JumpForm>> {
        self.call(|activation| activation.jump_form(params))
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        self.call(|activation| activation.params_with_thresholds(thresholds))
    }
}
