//! The training step: losses and gradients in closed form, layer by layer.
//!
//! ```text
//! forward    h_s = x_s W_enc_s^T + b_enc_s      a_s = activation(h_s)      y_hat[s..] += a_s W_dec_s      y_hat += b_dec
//! backward   E = 2 (y_hat - y) / B              dW_dec_s = a_s^T E[s..]    da_s = E[s..] W_dec_s^T
//!            dh_s by the activation             dW_enc_s = dh_s^T x_s      db_enc_s = sum dh_s     db_dec = sum E
//! ```
//!
//! The penalty terms reach `W_dec` through each feature's norm alone, so that part of its gradient is a multiple of the row.

#[cfg(test)]
#[path = "../../../tests/it/cases.rs"]
#[allow(dead_code, reason = "the integration tests use all of it")]
mod cases;
mod dense;
mod exchange;
mod kernels;
mod operations;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Batch, Error, Parameters, Result, StepContext, StepOutput, ThresholdForm, shape};
use half::bf16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use self::kernels::Workspace;
use super::dictionary::{Layer, Reach, layers};

/// How a step is computed; the result is the same to rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Over active entries where the activation is a threshold: by `kernels` on CPUs, by `operations` elsewhere; else dense.
    #[default]
    Auto,
    /// Every product dense.
    Dense,
    /// Over active entries, in loops of our own on CPUs.
    Kernels,
    /// Over active entries, by libtorch's operations on any device.
    Operations,
}

/// What a step keeps for the next one.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Gradients of the micro-batches so far, where libtorch made them.
    gradients: Vec<Tensor>,
    /// Memory of the kernels, in 32 and in 64 bits.
    short: Option<Workspace<f32>>,
    long: Option<Workspace<f64>>,
}

impl Kept {
    pub(super) const NEW: Self = Self { gradients: Vec::new(), short: None, long: None };
}

/// Losses and gradients of one batch, added to those of the micro-batches before.
pub(super) fn step(
    params: &Parameters,
    reach: Reach,
    batch: &Batch,
    context: &StepContext<'_>,
    form: Form,
    kept: &mut Kept,
) -> Result<StepOutput> {
    let d_model = Layer::of(params, 0)?.b_dec.size()[0];
    let axes = [("rows", -1), ("layer", layers(params) as i64), ("d_model", d_model)];
    shape::expect("step, inputs", &batch.inputs, &axes)?;
    let rows = batch.inputs.size()[0];
    shape::expect("step, targets", &batch.targets, &[("rows", rows), axes[1], axes[2]])?;
    let on_cpu = batch.inputs.device() == Device::Cpu;
    let gradients = &mut kept.gradients;
    let forms = if form == Form::Dense { None } else { threshold_forms(params, context)? };
    let kind = params.values()[0].kind();
    match (form, forms) {
        (Form::Kernels, _) if !on_cpu => Err(refused("kernels", "the run is not on the CPU; use `auto` or `operations`")),
        (Form::Kernels | Form::Operations, None) => {
            Err(refused("kernels` or `operations", "the activation is no threshold; use `auto` or `dense`"))
        }
        (_, None) => dense::step(params, reach, batch, context, gradients),
        (Form::Operations, Some(forms)) => operations::step(params, reach, batch, context, &forms, gradients),
        (_, Some(forms)) if !on_cpu => operations::step(params, reach, batch, context, &forms, gradients),
        (_, Some(forms)) => match kind {
            Kind::Double => kernels::step::<f64, f64>(params, reach, batch, context, &forms, &mut kept.long),
            Kind::BFloat16 => kernels::step::<f32, bf16>(params, reach, batch, context, &forms, &mut kept.short),
            _ => kernels::step::<f32, f32>(params, reach, batch, context, &forms, &mut kept.short),
        },
    }
}

/// Refuses a later micro-batch where the gradients of those before are not `there`.
fn check_before(context: &StepContext<'_>, there: bool) -> Result<()> {
    if there || !context.accumulate {
        return Ok(());
    }
    Err(Error::Invalid("step: a later micro-batch came without the ones before".to_owned()))
}

fn refused(form: &str, why: &str) -> Error {
    Error::config("transcoder, key `step`", format!("`{form}` cannot be had: {why}"))
}

/// The activation of each layer as a threshold, where it is one.
fn threshold_forms(params: &Parameters, context: &StepContext<'_>) -> Result<Option<Vec<ThresholdForm>>> {
    (0..layers(params)).map(|layer| context.activation.threshold_form(&Layer::of(params, layer)?.own)).collect()
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
