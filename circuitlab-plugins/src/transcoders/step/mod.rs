//! The training step: losses and gradients in closed form, layer by layer.
//!
//! ```text
//! forward    h_s = x_s W_enc_s^T + b_enc_s      a_s = activation(h_s)      y_hat[s..] += a_s W_dec_s      y_hat += b_dec
//! backward   E = 2 (y_hat - y) / B              dW_dec_s = a_s^T E[s..]    da_s = E[s..] W_dec_s^T
//!            dh_s by the activation             dW_enc_s = dh_s^T x_s      db_enc_s = sum dh_s     db_dec = sum E
//! ```
//!
//! The penalty terms reach `W_dec` through each feature's norm alone, so that part of its gradient is a multiple of the row.

mod dense;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Batch, Parameters, Result, StepContext, StepOutput, shape};
use tch::Tensor;

use super::dictionary::{Layer, Reach, layers};

/// What a step keeps for the next one.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Gradients of the last micro-batches, where they were dense.
    dense: Vec<Tensor>,
}

impl Kept {
    pub(super) const NEW: Self = Self { dense: Vec::new() };
}

/// Losses and gradients of one batch, added to those of the micro-batches before.
pub(super) fn step(params: &Parameters, reach: Reach, batch: &Batch, context: &StepContext<'_>, kept: &mut Kept) -> Result<StepOutput> {
    let d_model = Layer::of(params, 0)?.w_enc.size()[1];
    let axes = [("rows", -1), ("layer", layers(params) as i64), ("d_model", d_model)];
    shape::expect("step, inputs", &batch.inputs, &axes)?;
    let rows = batch.inputs.size()[0];
    shape::expect("step, targets", &batch.targets, &[("rows", rows), axes[1], axes[2]])?;
    dense::step(params, reach, batch, context, &mut kept.dense)
}

/// The terms of the loss: scalars.
#[derive(Debug)]
struct Losses {
    mse: Tensor,
    sparsity: Tensor,
    preact: Tensor,
}

impl Losses {
    /// Each rank of the feature axis has the whole squared error and its own features' penalties.
    fn sum_over_ranks(&mut self, context: &StepContext<'_>) -> Result<()> {
        context.strategy.sum(MeshAxis::Data, &mut self.mse)?;
        for term in [&mut self.sparsity, &mut self.preact] {
            context.strategy.sum(MeshAxis::Feature, term)?;
            context.strategy.sum(MeshAxis::Data, term)?;
        }
        Ok(())
    }
}
