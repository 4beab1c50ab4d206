//! The step for any activation and any device: every product dense, by libtorch.
//!
//! Cost: `rows * layers * d_model * d_features * (3 layers + 7)` FLOP.

use circuitlab_core::{Activated, BackwardInput, Batch, Parameters, Result, StepContext, StepOutput};
use tch::{Kind, Tensor};

use super::exchange::{FeatureSums, Next, take_in};
use super::{Losses, check_before};
use crate::transcoders::dictionary::{Layer, Reach, add_product, layers, product, wide};

/// What the forward pass of one source layer leaves for the backward pass.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) pre_acts: Tensor,
    pub(super) activated: Activated,
}

/// Losses and gradients of one batch, added to those of the micro-batches before.
pub(super) fn step(
    params: &Parameters,
    reach: Reach,
    batch: &Batch,
    context: &StepContext<'_>,
    before: &mut Vec<Tensor>,
) -> Result<StepOutput> {
    let layers = layers(params);
    let mean_rows = context.mean_rows;
    check_before(context, before.len() == params.values().len())?;
    let batch = &Batch { inputs: wide(&batch.inputs), targets: wide(&batch.targets) };

    let (sources, reconstruction) = forward(params, reach, batch, context)?;
    let residual = reconstruction - &batch.targets;
    let squared_error = residual.square().sum_dim_intlist([0, 2].as_slice(), false, None::<Kind>);
    let mut losses = Losses {
        mse: squared_error.sum(None::<Kind>) / mean_rows as f64,
        sparsity: Tensor::zeros([], (residual.kind(), residual.device())),
        preact: Tensor::zeros([], (residual.kind(), residual.device())),
    };
    let grad_targets = residual * (2.0 / mean_rows as f64);

    if !context.accumulate {
        // The last step's, before this one's take their place.
        before.clear();
    }
    let mut active_rows = Vec::with_capacity(layers);
    for (index, source) in sources.into_iter().enumerate() {
        let mut layer = Layer::of(params, index)?;
        layer.lend_decoder(params, context, Next::Decoder(index + 1))?;
        active_rows.push(source.activated.active.sum_dim_intlist(0, false, batch.inputs.kind()));
        let grads =
            backward(&layer, reach(layers, index), &source, &batch.inputs.select(1, index as i64), &grad_targets, context, mean_rows)?;
        losses.sparsity += grads.sparsity;
        losses.preact += grads.preact;
        let b_dec = grad_targets.select(1, index as i64).sum_dim_intlist(0, false, None::<Kind>);
        let skip = layer.skip_gradient(&grad_targets.select(1, index as i64), &batch.inputs.select(1, index as i64));
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
fn forward(params: &Parameters, reach: Reach, batch: &Batch, context: &StepContext<'_>) -> Result<(Vec<Source>, Tensor)> {
    let layers = layers(params);
    let mut reconstruction = batch.targets.zeros_like();
    let mut biases = Vec::with_capacity(layers);
    let mut sources = Vec::with_capacity(layers);
    let mut sums = FeatureSums::new(context, reach, layers);
    for index in 0..layers {
        let mut layer = Layer::of(params, index)?;
        layer.lend_encoder(params, context, Next::Decoder(index))?;
        let pre_acts = layer.pre_acts(&batch.inputs.select(1, index as i64));
        let activated = context.activation.activate(&pre_acts, &layer.own)?;
        let targets = reach(layers, index);
        layer.lend_decoder(params, context, if index + 1 < layers { Next::Encoder(index + 1) } else { Next::Decoder(0) })?;
        let part = product(&activated.acts, &layer.flat_decoder(), layer.compute_kind());
        let mut reached = reconstruction.narrow(1, targets.start as i64, targets.len() as i64);
        reached += part.view([-1, targets.len() as i64, batch.targets.size()[2]]);
        sums.decoded(index, |target| reconstruction.select(1, target as i64))?;
        biases.push(layer.b_dec.shallow_clone());
        sources.push(Source { pre_acts, activated });
    }
    sums.wait()?;
    reconstruction += Tensor::stack(&biases, 0);
    add_skips(params, &batch.inputs, &mut reconstruction)?;
    Ok((sources, reconstruction))
}

/// Adds the linear skips, where there are any, to the reconstruction of all layers.
pub(super) fn add_skips(params: &Parameters, inputs: &Tensor, reconstruction: &mut Tensor) -> Result<()> {
    for index in 0..layers(params) {
        let layer = Layer::of(params, index)?;
        if layer.skip.is_some() {
            let mut of_layer = reconstruction.select(1, index as i64);
            let sum = layer.with_skip(of_layer.shallow_clone(), &inputs.select(1, index as i64));
            of_layer.f_copy_(&sum)?;
        }
    }
    Ok(())
}

/// The gradients of one source layer, and its penalty terms.
#[derive(Debug)]
pub(super) struct LayerGradients {
    pub(super) sparsity: Tensor,
    pub(super) preact: Tensor,
    pub(super) w_enc: Tensor,
    pub(super) b_enc: Tensor,
    pub(super) w_dec: Tensor,
    pub(super) own: Vec<Tensor>,
}

pub(super) fn backward(
    layer: &Layer<'_>,
    targets: std::ops::Range<usize>,
    source: &Source,
    inputs: &Tensor,
    grad_targets: &Tensor,
    context: &StepContext<'_>,
    mean_rows: i64,
) -> Result<LayerGradients> {
    let rows = inputs.size()[0];
    let grad_reached =
        grad_targets.narrow(1, targets.start as i64, targets.len() as i64).reshape([rows, targets.len() as i64 * grad_targets.size()[2]]);
    let norms = layer.decoder_norms();
    let (decoder, kind) = (layer.flat_decoder(), layer.compute_kind());
    let back = context.activation.backward(BackwardInput {
        pre_acts: &source.pre_acts,
        params: &layer.own,
        activated: &source.activated,
        grad_acts: product(&grad_reached, &decoder.tr(), kind),
        decoder_norms: &norms,
        penalty: context.penalty,
        mean_rows,
    })?;
    // A feature whose decoder is all zero has no direction to shrink along, and no gradient through its norm.
    let per_norm = (back.decoder_norms / &norms).where_self(&norms.gt(0.0), &norms.zeros_like());
    let along_norms = wide(&decoder).g_mul(&per_norm.unsqueeze(1));
    let w_dec = add_product(&along_norms, &source.activated.acts.tr(), &grad_reached, kind);
    Ok(LayerGradients {
        sparsity: back.sparsity,
        preact: back.preact,
        w_enc: product(&back.pre_acts.tr(), inputs, kind),
        b_enc: back.pre_acts.sum_dim_intlist(0, false, None::<Kind>),
        w_dec: w_dec.view_as(&layer.w_dec),
        own: back.params,
    })
}
