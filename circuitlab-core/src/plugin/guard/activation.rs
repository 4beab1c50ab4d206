//! Guarded sparsity activations.

use tch::Tensor;

use super::guarded::Guarded;
use crate::sparsity::ActivationParameter;
use crate::{Activated, ActivationGradients, BackwardInput, Result, SparsityActivation};

/// Guards an activation.
///
/// # Errors
/// A panic while it names its parameters.
pub fn activation<T: SparsityActivation + 'static>(what: &'static str, made: T) -> Result<Box<dyn SparsityActivation>> {
    Ok(Box::new(Guarded::new(what, made).ask(T::parameters)?))
}

impl<T: SparsityActivation> SparsityActivation for Guarded<T, Vec<ActivationParameter>> {
    fn parameters(&self) -> Vec<ActivationParameter> {
        self.facts.clone()
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

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        self.call(|activation| activation.params_with_thresholds(thresholds))
    }
}
