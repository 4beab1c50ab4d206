//! The trait of sparsity activations, and what goes in and out of it.

use std::fmt::Debug;

use tch::Tensor;

use super::{JumpForm, ThresholdForm, by_autograd};
use crate::Result;
use crate::params::{Init, Update};

/// A parameter that an activation brings along: one number per feature.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationParameter {
    /// Its name, such as `log_threshold`.
    pub name: &'static str,
    /// Its value at the start.
    pub init: Init,
    /// Whether it follows its gradient, or what [`SparsityActivation::backward`] says.
    pub update: Update,
}

/// What decides whether a feature is active on a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Its own pre-activation.
    #[default]
    Entry,
    /// The pre-activations of all features of the row, so that features cannot be split over ranks.
    Row,
    /// The pre-activations of the whole batch, so that neither features nor rows can.
    Batch,
}

/// The features of one layer that fire.
#[derive(Debug)]
pub struct Activated {
    /// Activations, zero where a feature is silent: `[rows, d_features]`.
    pub acts: Tensor,
    /// Where a feature fires, boolean: `[rows, d_features]`.
    pub active: Tensor,
}

/// The weights of the penalty terms at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PenaltyWeights {
    /// Weight of the sparsity term.
    pub lambda: f64,
    /// Weight of the pre-activation term.
    pub mu: f64,
    /// Steepness of the tanh, `C`.
    pub tanh_scale: f64,
}

/// What [`SparsityActivation::backward`] works from: one source layer.
#[derive(Debug)]
pub struct BackwardInput<'a> {
    /// `[rows, d_features]`.
    pub pre_acts: &'a Tensor,
    /// The activation's own parameters, each `[d_features]`.
    pub params: &'a [Tensor],
    /// What the forward pass gave.
    pub activated: &'a Activated,
    /// Gradient of the squared error to the activations: `[rows, d_features]`. May be overwritten.
    pub grad_acts: Tensor,
    /// Norm of all decoder rows of each feature: `[d_features]`.
    pub decoder_norms: &'a Tensor,
    /// Weights of the penalty terms.
    pub penalty: PenaltyWeights,
    /// Rows that the loss is a mean over, all ranks of the data axis together.
    pub mean_rows: i64,
}

/// The two penalty terms of one layer and the gradient of the whole loss.
#[derive(Debug)]
pub struct ActivationGradients {
    /// The sparsity term, weighted and divided by the rows: scalar.
    pub sparsity: Tensor,
    /// The pre-activation term, weighted and divided by the rows: scalar.
    pub preact: Tensor,
    /// `[rows, d_features]`.
    pub pre_acts: Tensor,
    /// One for each of the activation's parameters, `[d_features]`: the gradient, or for a [tracked](Update::Tracked) one its new
    /// value times `rows / mean_rows`, which is this rank's share of the mean over ranks.
    pub params: Vec<Tensor>,
    /// Gradient to the decoder norms, by way of the penalty terms: `[d_features]`.
    pub decoder_norms: Tensor,
}

/// Decides which features are active.
///
/// `parameters`, `activate`, `thresholds` and `params_with_thresholds` are enough; the other methods have defaults.
///
/// Conformance is checked by [`testing::activation`](crate::testing::activation).
pub trait SparsityActivation: Debug + Send + Sync {
    /// Its parameters, one number per feature each. Asked for once.
    fn parameters(&self) -> Vec<ActivationParameter>;

    /// What decides whether a feature is active. Asked for once. A run is refused on a mesh that splits what has to be seen whole.
    fn scope(&self) -> Scope {
        Scope::Entry
    }

    /// The forward pass of one layer.
    ///
    /// # Shapes
    /// `pre_acts: [rows, d_features]`, each of `params: [d_features]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated>;

    /// The penalty terms of one layer, and the gradient of the whole loss to all that the activation reads.
    ///
    /// By default [`by_autograd`], which is right wherever `activate` is differentiable, and leaves tracked parameters as they are.
    /// A closed form is faster.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients> {
        by_autograd(self, &input)
    }

    /// The threshold of each feature, `[d_features]`, where there is one: what the pre-activation term measures from, what a
    /// feature's bias is set against at the start and, without a [`jump_form`](Self::jump_form), what a saved CLT holds.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>>;

    /// What lets a step work on the active entries alone, where the activation is of that form. A transcoder may then leave
    /// [`activate`](Self::activate) and [`backward`](Self::backward) out, which must agree with it.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn threshold_form(&self, params: &[Tensor]) -> Result<Option<ThresholdForm>> {
        let _ = params;
        Ok(None)
    }

    /// The JumpReLU that it is equal to at inference, where it is not one itself but equal to one. A saved CLT is then that of a
    /// JumpReLU, which other tools read too. Whether there is one depends on no parameter's value.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn jump_form(&self, params: &[Tensor]) -> Result<Option<JumpForm>> {
        let _ = params;
        Ok(None)
    }

    /// The parameters that have these thresholds: the way back from a saved CLT.
    ///
    /// # Errors
    /// Thresholds that this activation cannot have.
    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>>;
}
