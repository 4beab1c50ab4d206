//! The step over active entries alone, with libtorch's operations: for devices that have no kernels of our own, CUDA above all.
//!
//! The numbers are those of the dense step, to rounding. What it does in place of the dense products:
//!
//! ```text
//! entries    those that are not below their threshold, feature by feature: row, activation
//! decode     sums of decoder rows, one for each row of the batch
//! dW_dec     sums of rows of E, one for each feature                    dL/da at entries: a product of two rows each
//! dW_enc     sums of rows of x, one for each feature; the pull -mu n / B on the silent entries is the sum of all rows of x less those
//! dtheta     the sum of rows of E over the window, or over its complement where that has fewer entries, times the decoder row
//! ```
//!
//! Sums of chosen rows are [`sums`](rows::sums), libtorch's `embedding_bag`: it gathers nothing into memory, runs in a fixed order on
//! CPUs and GPUs and takes every float type. Compressed-row products were as fast at best, `index_add` 30 times slower.
//!
//! A layer whose entries are too many for that is dense: [`dense`](super::dense) does it, its pre-activations made a second time so
//! that they need not be kept. No more is kept of a layer between forward and backward than its entries and the edge of its window.

mod backward;
mod rows;
mod select;
#[cfg(test)]
mod tests;
mod window;

use circuitlab_core::{Batch, Error, Parameters, Result, StepContext, StepOutput, ThresholdForm};
use tch::{Device, Kind, Tensor};

use super::dense::{self, LayerGradients, Source, add_skips};
use super::exchange::{FeatureSums, Next, take_in};
use super::{Losses, check_before};
use crate::transcoders::dictionary::{Layer, Reach, layers, product, wide};
use select::Selected;

/// What the forward pass of one source layer leaves for the backward pass.
#[derive(Debug)]
enum Forward {
    Sparse(Selected),
    /// With its pre-activations, where encoding it once more would take its encoder from other ranks once more.
    Dense(Option<Source>),
}

/// Losses and gradients of one batch, added to those of the micro-batches before, which are in `before`. `forms` has the activation of
/// every layer as a threshold.
pub(super) fn step(
    params: &Parameters,
    reach: Reach,
    batch: &Batch,
    context: &StepContext<'_>,
    forms: &[ThresholdForm],
    before: &mut Vec<Tensor>,
) -> Result<StepOutput> {
    let layers = layers(params);
    if forms.len() != layers {
        return Err(Error::Invalid(format!("{layers} layers need as many threshold forms, {} came", forms.len())));
    }
    check_before(context, before.len() == params.values().len())?;
    let batch = &Batch { inputs: wide(&batch.inputs), targets: wide(&batch.targets) };
    let (forwards, reconstruction) = forward(params, reach, batch, context, forms)?;
    let mut residual = reconstruction.g_sub(&batch.targets);
    let squared_error = residual.square().sum_dim_intlist([0, 2].as_slice(), false, None::<Kind>);
    let zero = || Tensor::zeros([], (residual.kind(), residual.device()));
    let mut losses = Losses { mse: squared_error.sum(None::<Kind>) / context.mean_rows as f64, sparsity: zero(), preact: zero() };
    let grad_targets = residual.g_mul_scalar_(2.0 / context.mean_rows as f64);

    if !context.accumulate {
        before.clear();
    }
    let mut active_rows = Vec::with_capacity(layers);
    for (index, (forward, form)) in forwards.into_iter().zip(forms).enumerate() {
        let mut layer = Layer::of(params, index)?;
        layer.lend_decoder(params, context, Next::Decoder(index + 1))?;
        let targets = reach(layers, index);
        let grad_reached = grad_targets.narrow(1, targets.start as i64, targets.len() as i64).flatten(1, 2);
        let inputs = batch.inputs.select(1, index as i64);
        let (grads, active) = match forward {
            Forward::Sparse(selected) => backward::sparse(&layer, form, &selected, &inputs, &grad_reached, context)?,
            Forward::Dense(source) => dense_backward(&layer, targets, source, &inputs, &grad_targets, context)?,
        };
        active_rows.push(active);
        losses.sparsity += grads.sparsity;
        losses.preact += grads.preact;
        let b_dec = grad_targets.select(1, index as i64).sum_dim_intlist(0, false, None::<Kind>);
        let skip = layer.skip_gradient(&grad_targets.select(1, index as i64), &inputs);
        let gradients = [grads.w_enc, grads.b_enc, grads.w_dec, b_dec].into_iter().chain(grads.own).chain(skip);
        take_in(context, before, layer.positions.clone(), gradients)?;
    }
    losses.sum_over_ranks(context)?;
    Ok(StepOutput {
        mse: losses.mse,
        sparsity: losses.sparsity,
        preact: losses.preact,
        gradients: before.iter().map(Tensor::shallow_clone).collect(),
        gradient_squares: None,
        squared_error,
        active_rows: Tensor::stack(&active_rows, 0),
        stages: Vec::new(),
    })
}

/// Encodes every source layer and adds its decoding to the reconstruction, `[rows, layer, d_model]`.
fn forward(
    params: &Parameters,
    reach: Reach,
    batch: &Batch,
    context: &StepContext<'_>,
    forms: &[ThresholdForm],
) -> Result<(Vec<Forward>, Tensor)> {
    let layers = layers(params);
    let mut reconstruction = batch.targets.zeros_like();
    let mut biases = Vec::with_capacity(layers);
    let mut forwards = Vec::with_capacity(layers);
    let mut sums = FeatureSums::new(context, reach, layers);
    for (index, form) in forms.iter().enumerate() {
        let mut layer = Layer::of(params, index)?;
        layer.lend_encoder(params, context, Next::Decoder(index))?;
        let targets = reach(layers, index);
        let inputs = batch.inputs.select(1, index as i64);
        let mut reached = reconstruction.narrow(1, targets.start as i64, targets.len() as i64).flatten(1, 2);
        biases.push(layer.b_dec.shallow_clone());
        let selected = select::select(&layer, form, &inputs)?;
        let pre_acts = if selected.is_none() { Some(layer.pre_acts(&inputs)) } else { None };
        layer.lend_decoder(params, context, if index + 1 < layers { Next::Encoder(index + 1) } else { Next::Decoder(0) })?;
        if let Some(selected) = selected {
            selected.entries.decode(&layer, &mut reached)?;
            forwards.push(Forward::Sparse(selected));
        } else if let Some(pre_acts) = pre_acts {
            let activated = context.activation.activate(&pre_acts, &layer.own)?;
            reached += product(&activated.acts, &layer.flat_decoder(), layer.compute_kind());
            forwards.push(Forward::Dense(context.takes(layer.encoder_position()).then_some(Source { pre_acts, activated })));
        }
        sums.decoded(index, |target| reconstruction.select(1, target as i64))?;
    }
    sums.wait()?;
    reconstruction += Tensor::stack(&biases, 0);
    add_skips(params, &batch.inputs, &mut reconstruction)?;
    Ok((forwards, reconstruction))
}

/// The gradients of a layer that has too many entries, and on how many rows each feature was active.
fn dense_backward(
    layer: &Layer<'_>,
    targets: std::ops::Range<usize>,
    source: Option<Source>,
    inputs: &Tensor,
    grad_targets: &Tensor,
    context: &StepContext<'_>,
) -> Result<(LayerGradients, Tensor)> {
    let source = if let Some(source) = source {
        source
    } else {
        let pre_acts = layer.pre_acts(inputs);
        let activated = context.activation.activate(&pre_acts, &layer.own)?;
        Source { pre_acts, activated }
    };
    let active_rows = source.activated.active.sum_dim_intlist(0, false, source.pre_acts.kind());
    Ok((dense::backward(layer, targets, &source, inputs, grad_targets, context, context.mean_rows)?, active_rows))
}

/// The share of entries above which a dense product takes less time than sums of single rows. On a CPU, with 512 rows, both took the
/// same at an eighth (4096 features, decoders of 1536 numbers: 47 to 91 ms against 47 ms). A GPU is that much faster at products
/// than at reading; its share is an estimate from the ratio of the two, not a measurement.
fn dense_share(device: Device) -> f64 {
    if device == Device::Cpu { 1.0 / 8.0 } else { 1.0 / 32.0 }
}
