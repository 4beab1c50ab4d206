//! A step from its memory to its gradients; [`forward`](super::forward) has the first half.

use circuitlab_core::{Batch, Dims, Parameters, Result, StepContext, StepOutput, ThresholdForm};
use circuitlab_kernels::real::{Real, Stored};
use circuitlab_kernels::slices::{numbers, numbers_mut};
use circuitlab_kernels::threads;
use pulp::Arch;
use rayon::ThreadPool;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::backward::{DecoderTile, Encoder, penalties};
use super::block::Block;
use super::clock::Clock;
use super::workspace::{Workspace, own, scalar};
use crate::transcoders::dictionary::{Layer, Reach, layers};
use crate::transcoders::step::exchange::Next;
use crate::transcoders::step::{Losses, check_before};

/// Losses and gradients of one batch, with weights stored as `W` and computed with as `R`.
pub(in super::super) fn step<R: Real, W: Stored<R>>(
    params: &Parameters,
    reach: Reach,
    batch: &Batch,
    context: &StepContext<'_>,
    forms: &[ThresholdForm],
    kept: &mut Option<Workspace<R>>,
) -> Result<StepOutput> {
    let first = Layer::of(params, 0)?;
    let dims = Dims { layers: layers(params), d_model: first.b_dec.size()[0] as usize, d_features: first.b_enc.size()[0] as usize };
    let rows = batch.inputs.size()[0] as usize;
    let pool = threads::pool()?;
    let known = kept.take().filter(|work| work.fits(dims, params, context));
    check_before(context, known.is_some())?;
    let mut work = match known {
        Some(work) if work.rows == rows => work,
        // A micro-batch with fewer rows is added to those before it.
        Some(work) => work.with_rows(rows)?,
        None => Workspace::new(dims, rows, params, context)?,
    };
    work.prepare(pool.current_num_threads())?;
    let step = Step::<R> {
        pool: &pool,
        context,
        reach,
        rows,
        dims,
        inputs: batch.inputs.f_to_kind(R::KIND)?,
        targets: batch.targets.f_to_kind(R::KIND)?.f_contiguous()?,
        layers: forms.iter().enumerate().map(|(layer, form)| Numbers::of(params, layer, form)).collect::<Result<_>>()?,
    };
    let mut clock = Clock::start();
    step.forward::<W>(params, &mut work, &mut clock)?;
    let squared_error = step.residual(params, &mut work)?;
    clock.lap("residual", 0, 3 * rows * dims.layers * dims.d_model * size_of::<R>());
    let squares = step.backward::<W>(params, &mut work, &mut clock)?;
    let terms = work.layers.iter().flatten().map(|block| block.penalties);
    let penalties = terms.fold([0.0; 2], |sums, terms| [sums[0] + terms[0], sums[1] + terms[1]]);
    let counts = work.layers.iter().flatten().flat_map(|block| (0..block.features.len()).map(|place| block.active.of(place).len() as f32));
    let active_rows = Tensor::from_slice(&counts.collect::<Vec<_>>()).view([dims.layers as i64, dims.d_features as i64]);
    let mut losses = Losses {
        mse: scalar(squared_error.iter().sum::<f64>() / context.mean_rows as f64),
        sparsity: scalar(penalties[0]),
        preact: scalar(penalties[1]),
    };
    losses.sum_over_ranks(context)?;
    let gradients = work.gradients.iter().map(Tensor::shallow_clone).collect();
    *kept = Some(work);
    Ok(StepOutput {
        mse: losses.mse,
        sparsity: losses.sparsity,
        preact: losses.preact,
        gradients,
        gradient_squares: Some(squares),
        squared_error: Tensor::from_slice(&squared_error),
        active_rows,
        stages: clock.stages,
    })
}

/// The small parameters of one layer, in the type that is computed in.
pub(super) struct Numbers<R> {
    pub(super) biases: Vec<R>,
    pub(super) decoder_biases: Vec<R>,
    pub(super) thresholds: Vec<R>,
    /// Width of the window, and the threshold's derivative by what is trained.
    pub(super) trained: Option<(R, Vec<R>)>,
}

impl<R: Real> Numbers<R> {
    fn of(params: &Parameters, index: usize, form: &ThresholdForm) -> Result<Self> {
        let layer = Layer::of(params, index)?;
        form.check(layer.b_enc.size()[0])?;
        let list = |tensor: &Tensor| -> Result<Vec<R>> { Ok(numbers(&tensor.f_to_kind(R::KIND)?.f_contiguous()?)?.to_vec()) };
        let biases = list(layer.b_enc)?;
        let thresholds = form.thresholds.as_ref().map_or_else(|| Ok(vec![R::default(); biases.len()]), list)?;
        let trained =
            form.trained.as_ref().map(|trained| Ok::<_, circuitlab_core::Error>((R::of(trained.bandwidth), list(&trained.slope)?)));
        Ok(Self { biases, decoder_biases: list(layer.b_dec)?, thresholds, trained: trained.transpose()? })
    }
}

/// What all stages read.
pub(super) struct Step<'a, R> {
    pub(super) pool: &'a ThreadPool,
    pub(super) context: &'a StepContext<'a>,
    pub(super) reach: Reach,
    pub(super) rows: usize,
    pub(super) dims: Dims,
    /// `[rows, layer, d_model]`.
    pub(super) inputs: Tensor,
    /// `[rows, layer, d_model]`.
    pub(super) targets: Tensor,
    pub(super) layers: Vec<Numbers<R>>,
}

impl<R: Real> Step<'_, R> {
    /// The penalty terms of one layer, and their gradient to its entries.
    fn penalties(&self, index: usize, work: &mut Workspace<R>) {
        let (weights, mean_rows, norms) = (self.context.penalty, self.context.mean_rows as f64, &work.norms[index]);
        self.pool.install(|| work.layers[index].par_iter_mut().for_each(|block| penalties(block, norms, weights, mean_rows)));
    }

    /// All gradients but those of the decoder biases; gives the squares of all.
    fn backward<W: Stored<R>>(&self, params: &Parameters, work: &mut Workspace<R>, clock: &mut Clock) -> Result<Vec<f64>> {
        let mut squares = vec![0.0; params.values().len()];
        for index in 0..self.dims.layers {
            let mut layer = Layer::of(params, index)?;
            layer.lend_decoder(params, self.context, Next::Decoder(index + 1))?;
            let start = layer.positions.start;
            let [features, d_model] = [self.dims.d_features, self.dims.d_model];
            let width = (self.reach)(self.dims.layers, index).len() * d_model;
            let [active, silent] = work.layers[index]
                .iter()
                .fold([0, 0], |[active, silent], block| [active + block.values.len(), silent + block.silent.rows.len()]);
            // No layer needs them before or after: one memory serves all.
            work.swap_grads(index);
            self.penalties(index, work);
            clock.lap("penalties", 0, 0);
            let (mut w_enc, mut w_dec) =
                (self.room(layer.encoder_position(), &layer, work)?, self.room(layer.decoder_position(), &layer, work)?);
            squares[start + 2] = self.decoder::<W>(&layer, index, work, &mut w_dec)?;
            self.context.ready(layer.decoder_position(), &w_dec)?;
            // The gradient is written; where it is added to, it is read as well.
            clock.lap("decoder gradient", (4 * active + silent) * width, features * width * (size_of::<W>() + size_of::<R>()));
            let [of_w_enc, of_b_enc, of_own] = self.encoder(&layer, index, work, &mut w_enc)?;
            self.context.ready(layer.encoder_position(), &w_enc)?;
            clock.lap("encoder gradient", 2 * active * d_model, features * d_model * size_of::<R>());
            (squares[start], squares[start + 1]) = (of_w_enc, of_b_enc);
            squares[start + 3] = numbers::<R>(&work.gradients[start + 3])?.iter().map(|number| number.wide() * number.wide()).sum();
            if let Some(square) = squares.get_mut(layer.own_positions()).and_then(<[f64]>::first_mut) {
                *square = of_own;
            }
            work.swap_grads(index);
            if let Some(position) = layer.skip_position() {
                squares[position] = self.skip(&layer, index, position, work)?;
            }
        }
        Ok(squares)
    }

    /// The gradient of a layer's linear skip; gives its square.
    fn skip(&self, layer: &Layer<'_>, index: usize, position: usize, work: &mut Workspace<R>) -> Result<f64> {
        let inputs = self.inputs.select(1, index as i64);
        for tile in work.tiles.iter().filter(|tile| tile.target == index) {
            let error = tile.of(&work.errors[index], self.rows)?;
            let Some(part) = layer.skip_gradient(&error, &inputs) else { continue };
            let mut gradient = work.gradients[position].f_narrow(0, tile.columns.start as i64, tile.columns.len() as i64)?;
            if self.context.accumulate {
                let _ = gradient.f_add_(&part)?;
            } else {
                gradient.f_copy_(&part)?;
            }
        }
        let gradient = &work.gradients[position];
        self.context.ready(position, gradient)?;
        Ok(numbers::<R>(gradient)?.iter().map(|number| number.wide() * number.wide()).sum())
    }

    /// Memory for the gradient to a matrix: the workspace's own, or new one where it goes away.
    fn room(&self, position: usize, layer: &Layer<'_>, work: &Workspace<R>) -> Result<Tensor> {
        if !self.context.takes(position) {
            return Ok(work.gradients[position].shallow_clone());
        }
        let mut shape = if position == layer.encoder_position() { layer.w_enc.size() } else { layer.w_dec.size() };
        shape[0] = self.dims.d_features as i64;
        // Where vectors are added to, so is this, and nothing is there.
        let options = (R::KIND, Device::Cpu);
        Ok(if self.context.accumulate { Tensor::f_zeros(shape, options)? } else { Tensor::f_empty(shape, options)? })
    }

    /// The gradient to one layer's decoder, and to its active entries.
    fn decoder<W: Stored<R>>(&self, layer: &Layer<'_>, index: usize, work: &mut Workspace<R>, gradient: &mut Tensor) -> Result<f64> {
        let d_model = self.dims.d_model;
        let targets = (self.reach)(self.dims.layers, index);
        let stride = targets.len() * d_model;
        let of_block = (work.block_features * stride).max(1);
        let (dense, scratch) = (work.prefers_dense(index), &work.scratch);
        let decoder = numbers::<W>(&layer.w_dec)?;
        let gradient = numbers_mut::<R>(gradient)?;
        let accumulate = self.context.accumulate;
        let mut squares = 0.0;
        for tile in work.tiles.iter().filter(|tile| targets.contains(&tile.target)) {
            let error = &numbers::<R>(&work.errors[tile.target])?[self.rows * tile.columns.start..][..self.rows * tile.columns.len()];
            let total = &work.error_total[tile.target * d_model..][tile.columns.clone()];
            let offset = (tile.target - targets.start) * d_model + tile.columns.start;
            let of_tile = |((block, decoder), gradient): ((&mut Block<R>, &[W]), &mut [R])| -> Result<f64> {
                let mut scratch = own(scratch);
                let dense = if dense { Some(numbers_mut(&mut scratch.products)?) } else { None };
                Ok(Arch::new().dispatch(DecoderTile { block, decoder, gradient, stride, offset, error, total, accumulate, dense }))
            };
            let blocks = work.layers[index].par_iter_mut();
            let parts = blocks.zip(decoder.par_chunks(of_block)).zip(gradient.par_chunks_mut(of_block));
            let found: Vec<f64> = self.pool.install(|| parts.with_max_len(1).map(of_tile).collect::<Result<_>>())?;
            squares += found.iter().sum::<f64>();
        }
        Ok(squares)
    }

    /// The gradients to one layer's encoder, biases and thresholds.
    fn encoder(&self, layer: &Layer<'_>, index: usize, work: &mut Workspace<R>, w_enc: &mut Tensor) -> Result<[f64; 3]> {
        let d_model = self.dims.d_model;
        let inputs = self.inputs.select(1, index as i64).f_contiguous()?;
        let total = inputs.f_sum_dim_intlist([0].as_slice(), false, None::<Kind>)?;
        let (inputs, total) = (numbers::<R>(&inputs)?, numbers::<R>(&total)?);
        let numbers_of = &self.layers[index];
        let (dense, scratch) = (work.prefers_dense(index), &work.scratch);
        let (norms, features) = (&work.norms[index], work.block_features);
        let mut of_layer = work.gradients[layer.positions.start..layer.own_positions().end].iter_mut();
        let mut next = || of_layer.next().map_or(Ok(&mut [][..]), numbers_mut::<R>);
        let (_, b_enc, _, _, trained) = (next()?, next()?, next()?, next()?, next()?);
        let w_enc = numbers_mut::<R>(w_enc)?;
        let mut trained = trained.chunks_mut(features);
        let parts: Vec<_> = work.layers[index]
            .iter_mut()
            .zip(w_enc.chunks_mut((features * d_model).max(1)))
            .zip(b_enc.chunks_mut(features))
            .map(|((block, w_enc), b_enc)| (block, w_enc, b_enc, trained.next().unwrap_or_default()))
            .collect();
        let encoder = |(block, w_enc, b_enc, trained): (&mut Block<R>, &mut [R], &mut [R], &mut [R])| -> Result<[f64; 3]> {
            let features = block.features.clone();
            let mut scratch = own(scratch);
            let dense = if dense { Some(numbers_mut(&mut scratch.products)?) } else { None };
            Ok(Arch::new().dispatch(Encoder {
                block,
                norms: &norms[features.clone()],
                thresholds: &numbers_of.thresholds[features.clone()],
                trained: numbers_of.trained.as_ref().map(|(bandwidth, slopes)| (*bandwidth, &slopes[features])),
                penalty: self.context.penalty,
                mean_rows: self.context.mean_rows as f64,
                inputs,
                total,
                w_enc,
                b_enc,
                own: trained,
                accumulate: self.context.accumulate,
                dense,
            }))
        };
        let squares: Vec<[f64; 3]> = self.pool.install(|| parts.into_par_iter().with_max_len(1).map(encoder).collect::<Result<_>>())?;
        Ok(squares.iter().fold([0.0; 3], |sums, found| [sums[0] + found[0], sums[1] + found[1], sums[2] + found[2]]))
    }
}
