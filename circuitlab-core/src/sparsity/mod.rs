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
//!
//! An activation that is plain tensor arithmetic needs no backward pass of its own: [`by_autograd`] stands in.

mod activation;
mod autograd;
mod jump;
mod threshold_form;

pub use activation::{Activated, ActivationGradients, ActivationParameter, BackwardInput, PenaltyWeights, Scope, SparsityActivation};
pub use autograd::by_autograd;
pub use jump::{JumpForm, has_jump_form, has_thresholds};
pub use threshold_form::{ThresholdForm, TrainedThreshold, has_threshold_form};
