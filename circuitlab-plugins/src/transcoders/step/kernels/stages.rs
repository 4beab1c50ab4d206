//! The stages of a step, one after the other.

use std::borrow::Cow;
use std::time::Instant;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Batch, Dims, Parameters, Result, StageCost, StepContext, StepOutput, ThresholdForm};
use circuitlab_kernels::real::{Real, Stored};
use circuitlab_kernels::rows::squares_of_rows;
use circuitlab_kernels::slices::{numbers, numbers_mut};
use circuitlab_kernels::threads;
use pulp::Arch;
use rayon::ThreadPool;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::backward::{DecoderTile, Encoder, penalties};
use super::block::Block;
use super::clock::Clock;
use super::decode::{Decode, Residual, Source};
use super::select::Select;
use super::tiles::{Tile, split};
use super::workspace::{Workspace, own, scalar};
use crate::transcoders::dictionary::{Layer, Reach, layers};
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
    let dims = Dims { layers: layers(params), d_model: first.w_enc.size()[1] as usize, d_features: first.w_enc.size()[0] as usize };
    let rows = batch.inputs.size()[0] as usize;
    let pool = threads::pool()?;
    let known = kept.take().filter(|work| work.fits(dims, params));
    check_before(context, known.is_some())?;
    let mut work = match known {
        Some(work) if work.rows == rows => work,
        // A micro-batch with fewer rows is added to those before it.
        Some(work) => work.with_rows(rows)?,
        None => Workspace::new(dims, rows, params)?,
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
    step.encode::<W>(params, &mut work, &mut clock)?;
    if !context.accumulate {
        step.norms::<W>(params, &mut work.norms)?;
    }
    step.decode::<W>(params, &mut work, &mut clock)?;
    context.strategy.sum(MeshAxis::Feature, &mut work.error)?;
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
struct Numbers<R> {
    biases: Vec<R>,
    decoder_biases: Vec<R>,
    thresholds: Vec<R>,
    /// Width of the window, and the threshold's derivative by what is trained.
    trained: Option<(R, Vec<R>)>,
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

/// The source layers that write to a target, and the place of the target among what each writes to.
fn sources(reach: Reach, layers: usize, target: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..layers).filter_map(move |source| {
        let targets = reach(layers, source);
        targets.contains(&target).then(|| (source, target - targets.start))
    })
}

/// What all stages read.
struct Step<'a, R> {
    pool: &'a ThreadPool,
    context: &'a StepContext<'a>,
    reach: Reach,
    rows: usize,
    dims: Dims,
    /// `[rows, layer, d_model]`.
    inputs: Tensor,
    /// `[rows, layer, d_model]`.
    targets: Tensor,
    layers: Vec<Numbers<R>>,
}

impl<R: Real> Step<'_, R> {
    /// Pre-activations, and of them the active entries, block by block.
    fn encode<W: Stored<R>>(&self, params: &Parameters, work: &mut Workspace<R>, clock: &mut Clock) -> Result<()> {
        let (rows, scratch) = (self.rows, &work.scratch);
        let mut busy = [0.0; 2];
        for (index, blocks) in work.layers.iter_mut().enumerate() {
            let w_enc = Layer::of(params, index)?.w_enc;
            // With rows side by side, as products take them fastest.
            let inputs = self.inputs.select(1, index as i64).tr().f_contiguous()?;
            let numbers_of = &self.layers[index];
            let operands =
                |block: &Block<R>| (w_enc.narrow(0, block.features.start as i64, block.features.len() as i64), inputs.shallow_clone());
            let operands: Vec<(Tensor, Tensor)> = blocks.iter().map(operands).collect();
            let encode = |(block, (weights, inputs)): (&mut Block<R>, (Tensor, Tensor))| -> Result<[f64; 2]> {
                let began = Instant::now();
                let mut scratch = own(scratch);
                let mut products = scratch.products.narrow(0, 0, block.features.len() as i64);
                let _ = weights.f_to_kind(R::KIND)?.f_mm_out(&products, &inputs)?;
                let encoded = began.elapsed();
                let features = block.features.clone();
                Arch::new().dispatch(Select {
                    products: numbers_mut(&mut products)?,
                    rows,
                    biases: &numbers_of.biases[features.clone()],
                    thresholds: &numbers_of.thresholds[features],
                    half_window: numbers_of.trained.as_ref().map(|(bandwidth, _)| *bandwidth * R::of(0.5)),
                    block,
                    scratch: &mut scratch.rows,
                });
                Ok([encoded, began.elapsed().saturating_sub(encoded)].map(|time| time.as_secs_f64()))
            };
            let sum = |one: [f64; 2], other: [f64; 2]| Ok([one[0] + other[0], one[1] + other[1]]);
            let parts = blocks.par_iter_mut().zip(operands).with_max_len(1).map(encode);
            busy = sum(busy, self.pool.install(|| parts.try_reduce(|| [0.0; 2], sum))?)?;
        }
        let Dims { layers, d_model, d_features } = self.dims;
        let (weights, entries) = (layers * d_model * d_features, layers * d_features * rows);
        let stage = |name, seconds, flop, bytes| StageCost { name, seconds, flop: flop as f64, bytes: bytes as f64 };
        clock.lap_shared([
            stage("encode", busy[0], 2 * rows * weights, weights * size_of::<W>()),
            stage("select", busy[1], 0, entries * size_of::<R>()),
        ]);
        Ok(())
    }

    /// The decoder norms.
    fn norms<W: Stored<R>>(&self, params: &Parameters, norms: &mut [Vec<R>]) -> Result<()> {
        for (index, norms) in norms.iter_mut().enumerate() {
            let layer = Layer::of(params, index)?;
            let width = (self.reach)(self.dims.layers, index).len() * self.dims.d_model;
            let known = params.row_squares(layer.positions.start + 2).filter(|known| known.len() == norms.len());
            let squares = match known {
                Some(known) => Cow::Borrowed(known),
                None => Cow::Owned(squares_of_rows::<R, W>(numbers(layer.w_dec)?, width)?),
            };
            norms.iter_mut().zip(&*squares).for_each(|(norm, square)| *norm = R::of(square.sqrt()));
        }
        Ok(())
    }

    /// The reconstruction without biases.
    fn decode<W: Stored<R>>(&self, params: &Parameters, work: &mut Workspace<R>, clock: &mut Clock) -> Result<()> {
        let dense: Vec<bool> = (0..self.dims.layers).map(|layer| work.prefers_dense(layer)).collect();
        let Workspace { layers, tiles, error, scratch, .. } = work;
        let scratch = &*scratch;
        let decoders = (0..self.dims.layers).map(|layer| numbers::<W>(Layer::of(params, layer)?.w_dec)).collect::<Result<Vec<_>>>()?;
        let (reach, dims) = (self.reach, self.dims);
        let parts = split(numbers_mut::<R>(error)?, tiles, self.rows);
        let decode = |(tile, part): (&Tile, &mut [R])| -> Result<()> {
            let source = |(source, place): (usize, usize)| Source {
                blocks: &layers[source],
                decoder: decoders[source],
                stride: reach(dims.layers, source).len() * dims.d_model,
                offset: place * dims.d_model + tile.columns.start,
                dense: dense[source],
            };
            let sources: Vec<Source<'_, R, W>> = sources(reach, dims.layers, tile.target).map(source).collect();
            part.fill(R::default());
            let mut scratch = own(scratch);
            let scratch = numbers_mut(&mut scratch.products)?;
            Arch::new().dispatch(Decode { sources: &sources, tile: part, width: tile.columns.len(), scratch });
            Ok(())
        };
        // The last tiles have the most sources: they come first, so that no thread is left alone with one.
        let tiled: Vec<_> = tiles.iter().zip(parts).rev().collect();
        self.pool.install(|| tiled.into_par_iter().with_max_len(1).try_for_each(decode))?;
        let width = |source: usize| reach(dims.layers, source).len() * dims.d_model;
        let active = |blocks: &[Block<R>]| blocks.iter().map(|block| block.values.len()).sum::<usize>();
        let products: usize = layers.iter().enumerate().map(|(source, blocks)| width(source) * active(blocks)).sum();
        let weights: usize = (0..dims.layers).map(|source| width(source) * dims.d_features).sum();
        clock.lap("decode", 2 * products, weights * size_of::<W>());
        Ok(())
    }

    /// The gradient of the squared error in the reconstruction's place; gives the squared error of each target layer.
    fn residual(&self, params: &Parameters, work: &mut Workspace<R>) -> Result<Vec<f64>> {
        let Workspace { tiles, error, error_total, gradients, .. } = work;
        let targets = numbers::<R>(&self.targets)?;
        let (d_model, stride) = (self.dims.d_model, self.dims.layers * self.dims.d_model);
        let factor = R::of(2.0 / self.context.mean_rows as f64);
        let parts = split(numbers_mut::<R>(error)?, tiles, self.rows);
        let totals = split(error_total, tiles, 1);
        let of_layers = &self.layers;
        let residual = |((tile, part), total): ((&Tile, &mut [R]), &mut [R])| {
            let biases = &of_layers[tile.target].decoder_biases[tile.columns.clone()];
            for row in part.chunks_exact_mut(biases.len().max(1)) {
                row.iter_mut().zip(biases).for_each(|(number, bias)| *number += *bias);
            }
            let offset = tile.target * d_model + tile.columns.start;
            Arch::new().dispatch(Residual { tile: part, width: biases.len(), targets, stride, offset, factor, total })
        };
        let tiled: Vec<_> = tiles.iter().zip(parts).zip(totals).collect();
        let squared: Vec<f64> = self.pool.install(|| tiled.into_par_iter().map(residual).collect());
        let mut of_layers = vec![0.0; self.dims.layers];
        tiles.iter().zip(squared).for_each(|(tile, squared)| of_layers[tile.target] += squared);
        for (layer, total) in error_total.chunks_exact(d_model).enumerate() {
            let place = Layer::of(params, layer)?.positions.start + 3;
            let gradient = numbers_mut::<R>(&mut gradients[place])?;
            for (gradient, total) in gradient.iter_mut().zip(total) {
                *gradient = if self.context.accumulate { *gradient + *total } else { *total };
            }
        }
        Ok(of_layers)
    }

    /// The penalty terms of one layer, and their gradient to its entries.
    fn penalties(&self, index: usize, work: &mut Workspace<R>) {
        let (weights, mean_rows, norms) = (self.context.penalty, self.context.mean_rows as f64, &work.norms[index]);
        self.pool.install(|| work.layers[index].par_iter_mut().for_each(|block| penalties(block, norms, weights, mean_rows)));
    }

    /// All gradients but those of the decoder biases; gives the squares of all.
    fn backward<W: Stored<R>>(&self, params: &Parameters, work: &mut Workspace<R>, clock: &mut Clock) -> Result<Vec<f64>> {
        let mut squares = vec![0.0; params.values().len()];
        for index in 0..self.dims.layers {
            let layer = Layer::of(params, index)?;
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
            squares[start + 2] = self.decoder::<W>(&layer, index, work)?;
            // The gradient is written; where it is added to, it is read as well.
            clock.lap("decoder gradient", (4 * active + silent) * width, features * width * (size_of::<W>() + size_of::<R>()));
            let [w_enc, b_enc, own] = self.encoder(&layer, index, work)?;
            clock.lap("encoder gradient", 2 * active * d_model, features * d_model * size_of::<R>());
            (squares[start], squares[start + 1]) = (w_enc, b_enc);
            squares[start + 3] = numbers::<R>(&work.gradients[start + 3])?.iter().map(|number| number.wide() * number.wide()).sum();
            if let Some(square) = squares.get_mut(start + 4..layer.positions.end).and_then(<[f64]>::first_mut) {
                *square = own;
            }
            work.swap_grads(index);
        }
        Ok(squares)
    }

    /// The gradient to one layer's decoder, and to its active entries.
    fn decoder<W: Stored<R>>(&self, layer: &Layer<'_>, index: usize, work: &mut Workspace<R>) -> Result<f64> {
        let d_model = self.dims.d_model;
        let targets = (self.reach)(self.dims.layers, index);
        let stride = targets.len() * d_model;
        let of_block = (work.block_features * stride).max(1);
        let (dense, scratch) = (work.prefers_dense(index), &work.scratch);
        let decoder = numbers::<W>(layer.w_dec)?;
        let error = numbers::<R>(&work.error)?;
        let gradient = numbers_mut::<R>(&mut work.gradients[layer.positions.start + 2])?;
        let (mut begin, mut squares) = (0, 0.0);
        for tile in &work.tiles {
            let length = self.rows * tile.columns.len();
            let error = &error[begin..begin + length];
            begin += length;
            if !targets.contains(&tile.target) {
                continue;
            }
            let total = &work.error_total[tile.target * d_model..][tile.columns.clone()];
            let offset = (tile.target - targets.start) * d_model + tile.columns.start;
            let accumulate = self.context.accumulate;
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
    fn encoder(&self, layer: &Layer<'_>, index: usize, work: &mut Workspace<R>) -> Result<[f64; 3]> {
        let d_model = self.dims.d_model;
        let inputs = self.inputs.select(1, index as i64).f_contiguous()?;
        let total = inputs.f_sum_dim_intlist([0].as_slice(), false, None::<Kind>)?;
        let (inputs, total) = (numbers::<R>(&inputs)?, numbers::<R>(&total)?);
        let numbers_of = &self.layers[index];
        let (dense, scratch) = (work.prefers_dense(index), &work.scratch);
        let (norms, features) = (&work.norms[index], work.block_features);
        let mut of_layer = work.gradients[layer.positions.clone()].iter_mut();
        let mut next = || of_layer.next().map_or(Ok(&mut [][..]), numbers_mut::<R>);
        let (w_enc, b_enc, _, _, trained) = (next()?, next()?, next()?, next()?, next()?);
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
