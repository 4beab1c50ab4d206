//! What `relu` and `jumprelu` share: a feature fires where its pre-activation is above a threshold, and the penalty terms
//! pull on the distance to it.

use circuitlab_core::{Activated, BackwardInput, Error, Result, shape};
use tch::{Kind, Tensor};

/// `a = h * 1[h > theta]`.
///
/// # Shapes
/// `pre_acts: [rows, d_features]`, `theta: [d_features]`.
pub(super) fn activate(pre_acts: &Tensor, theta: &Tensor) -> Result<Activated> {
    shape::expect("activate", pre_acts, &[("rows", -1), ("d_features", theta.numel() as i64)])?;
    let active = pre_acts.gt_tensor(theta);
    Ok(Activated { acts: pre_acts * &active, active })
}

/// The penalty terms and the gradient of the loss with the threshold held fixed.
#[derive(Debug)]
pub(super) struct Backward {
    /// Sparsity term: scalar.
    pub(super) sparsity: Tensor,
    /// Pre-activation term: scalar.
    pub(super) preact: Tensor,
    /// Gradient to the activations, sparsity term included: `[rows, d_features]`.
    pub(super) acts: Tensor,
    /// Gradient to the pre-activations: `[rows, d_features]`.
    pub(super) pre_acts: Tensor,
    /// Gradient to the threshold by way of the pre-activation term: `[d_features]`.
    pub(super) theta: Tensor,
    /// Gradient to the decoder norms: `[d_features]`.
    pub(super) decoder_norms: Tensor,
}

/// With `t = tanh(C a n)`, `B` rows and `gap = theta - h`:
///
/// ```text
/// g           = dL/da + lambda C n (1 - t^2) / B
/// dL/dh       = g * 1[h > theta] - mu n / B * 1[h < theta]
/// dL/dn       = lambda C / B * sum a (1 - t^2) + mu / B * sum relu(gap)
/// dL/dtheta   = mu n / B * sum 1[h < theta]              (the rest, through the jump, is the caller's)
/// ```
pub(super) fn backward(input: BackwardInput<'_>, theta: &Tensor) -> Result<Backward> {
    let features = theta.numel() as i64;
    shape::expect("activation backward, pre_acts", input.pre_acts, &[("rows", -1), ("d_features", features)])?;
    shape::expect("activation backward, grad_acts", &input.grad_acts, &[("rows", input.pre_acts.size()[0]), ("d_features", features)])?;
    shape::expect("activation backward, decoder_norms", input.decoder_norms, &[("d_features", features)])?;
    let rows = input.mean_rows as f64;
    let weights = input.penalty;
    let (sparsity_weight, preact_weight) = (weights.lambda / rows, weights.mu / rows);
    let (norms, acts) = (input.decoder_norms, &input.activated.acts);

    let mut tanh = (acts * (norms * weights.tanh_scale)).tanh_();
    let sparsity = tanh.sum(None::<Kind>) * sparsity_weight;
    let slope = tanh.square_().neg_() + 1.0; // tanh itself is not needed any more
    let mut grad_norms = (acts * &slope).sum_dim_intlist(0, false, None::<Kind>) * (sparsity_weight * weights.tanh_scale);
    let mut grad_acts = input.grad_acts;
    let _ = grad_acts.addcmul_(&slope, &(norms * (sparsity_weight * weights.tanh_scale)).unsqueeze(0));

    let gap = (theta - input.pre_acts).relu_();
    let silent = gap.gt(0.0);
    let total_gap = gap.sum_dim_intlist(0, false, None::<Kind>);
    let preact = (&total_gap * norms).sum(None::<Kind>) * preact_weight;
    grad_norms += total_gap * preact_weight;
    let pull = norms * preact_weight;
    let grad_theta = silent.sum_dim_intlist(0, false, theta.kind()) * &pull;
    let grad_pre_acts = &grad_acts * &input.activated.active - silent * pull;

    Ok(Backward { sparsity, preact, acts: grad_acts, pre_acts: grad_pre_acts, theta: grad_theta, decoder_norms: grad_norms })
}

/// The single parameter of an activation that has one.
pub(super) fn only<'a>(what: &'static str, params: &'a [Tensor]) -> Result<&'a Tensor> {
    match params {
        [one] => Ok(one),
        _ => Err(Error::Invalid(format!("{what} has 1 parameter, {} came", params.len()))),
    }
}
