//! Sparsity activations: which features are active, what gradient goes back, and what they add to the loss.
//!
//! The loss of a transcoder is the squared error plus two terms over every source layer's features,
//!
//! ```text
//! sparsity = lambda * mean over rows of sum_f tanh(tanh_scale * a_f * norm_f)
//! preact   = mu     * mean over rows of sum_f relu(theta_f - h_f) * norm_f
//! ```
//!
//! with `h` the pre-activation, `a` the activation, `theta` the threshold (0 where there is none) and `norm_f` the norm of
//! all decoder rows of the feature together. The second keeps silent features within reach of the gradient.

use std::fmt::Debug;

use tch::Tensor;

use crate::Result;
use crate::params::Init;

/// A parameter that an activation brings along: one number per feature.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationParameter {
    /// Its name, such as `log_threshold`.
    pub name: &'static str,
    /// Its value at the start.
    pub init: Init,
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
    /// One for each of the activation's parameters, `[d_features]`.
    pub params: Vec<Tensor>,
    /// Gradient to the decoder norms, by way of the penalty terms: `[d_features]`.
    pub decoder_norms: Tensor,
}

/// Decides which features are active.
///
/// Conformance is checked by [`testing::activation`](crate::testing::activation).
pub trait SparsityActivation: Debug + Send + Sync {
    /// The parameters that it trains, one number per feature each. Asked for once.
    fn parameters(&self) -> Vec<ActivationParameter>;

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
    /// # Errors
    /// Shapes that do not fit.
    fn backward(&self, input: BackwardInput<'_>) -> Result<ActivationGradients>;

    /// The threshold of each feature, `[d_features]`, where there is one: what a saved CLT holds, and what a feature's bias
    /// is set against at the start.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>>;

    /// The parameters that have these thresholds: the way back from a saved CLT.
    ///
    /// # Errors
    /// Thresholds that this activation cannot have.
    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>>;
}
