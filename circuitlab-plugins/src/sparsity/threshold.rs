//! What the activations share: the penalty terms pull on the distance to a threshold, and of the gradient to the activations a
//! feature gets what it is active on. For `relu` and `jumprelu` that is where its pre-activation is above the threshold.

use circuitlab_core::{Activated, ActivationGradients, BackwardInput, Error, Result, shape};
use tch::{Device, Kind, Tensor};

/// `a = h * 1[h > theta]`.
///
/// # Shapes
/// `pre_acts: [rows, d_features]`, `theta: [d_features]`.
pub(super) fn activate(pre_acts: &Tensor, theta: &Tensor) -> Result<Activated> {
    shape::expect("activate", pre_acts, &[("rows", -1), ("d_features", theta.numel() as i64)])?;
    let active = pre_acts.gt_tensor(theta);
    Ok(Activated { acts: pre_acts * &active, active })
}

/// The penalty terms and the gradient of the loss.
#[derive(Debug)]
pub(super) struct Backward {
    /// Sparsity term: scalar.
    pub(super) sparsity: Tensor,
    /// Pre-activation term: scalar.
    pub(super) preact: Tensor,
    /// Gradient to the pre-activations: `[rows, d_features]`.
    pub(super) pre_acts: Tensor,
    /// Gradient to the threshold by way of the pre-activation term: `[d_features]`.
    pub(super) theta: Tensor,
    /// Sum over rows of the gradient to the activations where `|h - theta|` is below half the window: `[d_features]`.
    pub(super) near: Tensor,
    /// Gradient to the decoder norms: `[d_features]`.
    pub(super) decoder_norms: Tensor,
}

impl Backward {
    /// The whole, with the gradients to the activation's own parameters.
    pub(super) fn with_params(self, params: Vec<Tensor>) -> ActivationGradients {
        let Self { sparsity, preact, pre_acts, decoder_norms, .. } = self;
        ActivationGradients { sparsity, preact, pre_acts, params, decoder_norms }
    }
}

/// The threshold of every feature where there is none: `[d_features]`.
pub(super) fn zeros(pre_acts: &Tensor) -> Tensor {
    Tensor::zeros([pre_acts.size().last().copied().unwrap_or(0)], (pre_acts.kind(), pre_acts.device()))
}

/// Numbers of a block of rows that the elementwise work is done on at a time: half a megabyte in f32, so that the dozen passes over
/// a block find it in a core's own cache. Over all rows at once they took twice as long as the products.
const BLOCK_VALUES: i64 = 1 << 17;

/// With `t = tanh(C a n)`, `B` rows, `gap = theta - h` and `1[active]` the support, such as `1[h > theta]`:
///
/// ```text
/// g           = dL/da + lambda C n (1 - t^2) / B
/// dL/dh       = g * 1[active] - mu n / B * 1[h < theta]
/// dL/dn       = lambda C / B * sum a (1 - t^2) + mu / B * sum relu(gap)
/// dL/dtheta   = mu n / B * sum 1[h < theta]              (the rest, through the jump, is the caller's)
/// ```
pub(super) fn backward(input: BackwardInput<'_>, theta: &Tensor, window: Option<f64>) -> Result<Backward> {
    let features = theta.numel() as i64;
    shape::expect("activation backward, pre_acts", input.pre_acts, &[("rows", -1), ("d_features", features)])?;
    let rows = input.pre_acts.size()[0];
    shape::expect("activation backward, grad_acts", &input.grad_acts, &[("rows", rows), ("d_features", features)])?;
    shape::expect("activation backward, decoder_norms", input.decoder_norms, &[("d_features", features)])?;
    let weights = input.penalty;
    let (sparsity_weight, preact_weight) = (weights.lambda / input.mean_rows as f64, weights.mu / input.mean_rows as f64);
    let pass = Pass {
        theta,
        tanh_scales: input.decoder_norms * weights.tanh_scale,
        sparsity_slopes: input.decoder_norms * (sparsity_weight * weights.tanh_scale),
        pull: input.decoder_norms * preact_weight,
        window,
    };
    let mut sums = Sums::new(theta);
    let block = if theta.device() == Device::Cpu { (BLOCK_VALUES / features.max(1)).max(1) } else { rows.max(1) };
    for start in (0..rows).step_by(block as usize) {
        let of = |tensor: &Tensor| tensor.narrow(0, start, block.min(rows - start));
        pass.run(&of(input.pre_acts), &of(&input.activated.acts), &of(&input.activated.active), of(&input.grad_acts), &mut sums);
    }
    Ok(Backward {
        sparsity: sums.tanh * sparsity_weight,
        preact: (&sums.gap * input.decoder_norms).sum(None::<Kind>) * preact_weight,
        pre_acts: input.grad_acts,
        theta: sums.silent * &pass.pull,
        near: sums.near,
        decoder_norms: sums.slope * (sparsity_weight * weights.tanh_scale) + sums.gap * preact_weight,
    })
}

/// Sums over rows: a scalar, and numbers per feature.
#[derive(Debug)]
struct Sums {
    tanh: Tensor,
    slope: Tensor,
    gap: Tensor,
    silent: Tensor,
    near: Tensor,
}

impl Sums {
    fn new(theta: &Tensor) -> Self {
        let zeros = || theta.zeros_like();
        Self { tanh: Tensor::zeros([], (theta.kind(), theta.device())), slope: zeros(), gap: zeros(), silent: zeros(), near: zeros() }
    }
}

/// What all blocks share.
#[derive(Debug)]
struct Pass<'a> {
    theta: &'a Tensor,
    tanh_scales: Tensor,
    sparsity_slopes: Tensor,
    pull: Tensor,
    window: Option<f64>,
}

impl Pass<'_> {
    /// Turns a block's gradient to the activations into that to the pre-activations, in place.
    fn run(&self, pre_acts: &Tensor, acts: &Tensor, active: &Tensor, mut grad: Tensor, sums: &mut Sums) {
        let over_rows = |values: &Tensor| values.sum_dim_intlist(0, false, self.theta.kind());
        let mut tanh = (acts * &self.tanh_scales).tanh_();
        sums.tanh += tanh.sum(None::<Kind>);
        let mut slope = tanh.square_().neg_().g_add_scalar_(1.0);
        let _ = grad.addcmul_(&slope, &self.sparsity_slopes.unsqueeze(0));
        sums.slope += over_rows(&slope.g_mul_(acts));
        let mut gap = self.theta - pre_acts;
        if let Some(window) = self.window {
            sums.near += over_rows(&(&grad * gap.abs().lt(window / 2.0)));
        }
        // Converted once: each use of a mask in arithmetic would convert it again, which took longer than the products.
        let silent = gap.gt(0.0).to_kind(self.theta.kind());
        sums.silent += over_rows(&silent);
        sums.gap += over_rows(&gap.relu_());
        let _ = grad.g_mul_(active).addcmul_(&silent, &self.pull.neg().unsqueeze(0));
    }
}

/// The single parameter of an activation that has one.
pub(super) fn only<'a>(what: &'static str, params: &'a [Tensor]) -> Result<&'a Tensor> {
    match params {
        [one] => Ok(one),
        _ => Err(Error::Invalid(format!("{what} has 1 parameter, {} came", params.len()))),
    }
}

/// Refuses a `k` of 0. One above the number of features is all of them: a default must do for a small dictionary too.
pub(super) fn check_k(key: &str, k: usize) -> Result<()> {
    if k > 0 {
        return Ok(());
    }
    Err(Error::config(key, "expected a whole number above 0, got 0"))
}
