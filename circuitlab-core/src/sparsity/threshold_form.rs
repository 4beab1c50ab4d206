//! The activations that a step need not see whole.

use tch::Tensor;

use super::SparsityActivation;
use super::jump::at_start;
use crate::{Result, shape};

/// What is needed to step over the active entries of an activation alone: it is `a = h` where `h` is above a threshold, else 0, with
/// the penalty terms measured from that threshold.
///
/// Its [`backward`](super::SparsityActivation::backward) is then, with `t = tanh(C a n)`, `n` the decoder norms and `B` the rows of
/// the mean:
///
/// ```text
/// g         = dL/da + lambda C n (1 - t^2) / B
/// dL/dh     = g 1[h > theta] - mu n / B 1[h < theta]
/// dL/dtheta = mu n / B sum 1[h < theta] - theta / bandwidth sum g 1[|h - theta| < bandwidth / 2]
/// ```
///
/// where the last sum is there for trained thresholds only.
#[derive(Debug)]
pub struct ThresholdForm {
    /// What a pre-activation must be above, `[d_features]`; nothing where that is 0.
    pub thresholds: Option<Tensor>,
    /// How its one parameter is trained; nothing where it has none.
    pub trained: Option<TrainedThreshold>,
}

/// How thresholds follow their gradient.
#[derive(Debug)]
pub struct TrainedThreshold {
    /// Width of the rectangle kernel that stands in for the jump's gradient.
    pub bandwidth: f64,
    /// The derivative of the threshold by the activation's parameter: `[d_features]`.
    pub slope: Tensor,
}

impl ThresholdForm {
    /// Checks that each tensor has a number for every feature.
    ///
    /// # Errors
    /// Another shape than `[d_features]`.
    pub fn check(&self, d_features: i64) -> Result<()> {
        let axes = [("d_features", d_features)];
        let fits = |what, tensor: Option<&Tensor>| tensor.map_or(Ok(()), |tensor| shape::expect(what, tensor, &axes));
        fits("threshold form, thresholds", self.thresholds.as_ref())?;
        fits("threshold form, slope", self.trained.as_ref().map(|trained| &trained.slope))
    }
}

/// Whether an activation has a [`threshold_form`](SparsityActivation::threshold_form), asked with its parameters as they start.
///
/// # Errors
/// What the activation returns.
pub fn has_threshold_form(activation: &dyn SparsityActivation) -> Result<bool> {
    Ok(activation.threshold_form(&at_start(activation))?.is_some())
}
