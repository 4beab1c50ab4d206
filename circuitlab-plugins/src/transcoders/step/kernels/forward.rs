//! From the batch to the gradient of the squared error in its reconstruction.

use std::borrow::Cow;
use std::time::Instant;

use circuitlab_core::{Dims, Parameters, Result, StageCost};
use circuitlab_kernels::real::{Real, Stored};
use circuitlab_kernels::rows::squares_of_rows;
use circuitlab_kernels::slices::{numbers, numbers_mut};
use pulp::Arch;
use rayon::prelude::*;
use tch::Tensor;

use super::block::Block;
use super::clock::Clock;
use super::decode::{Decode, Residual, Source};
use super::select::Select;
use super::stages::Step;
use super::tiles::{Tile, split};
use super::workspace::{Workspace, own};
use crate::transcoders::dictionary::Layer;
use crate::transcoders::step::exchange::{FeatureSums, Next};

/// The parts of each tile, in the order of the tiles, of one tensor for each target layer.
fn parts<'a, R: Real>(errors: &'a mut [Tensor], tiles: &[Tile], rows: usize) -> Result<Vec<&'a mut [R]>> {
    let mut parts = Vec::with_capacity(tiles.len());
    for (error, tiles) in errors.iter_mut().zip(tiles.chunk_by(|tile, next| tile.target == next.target)) {
        parts.extend(split(numbers_mut::<R>(error)?, tiles, rows));
    }
    Ok(parts)
}

impl<R: Real> Step<'_, R> {
    /// The reconstruction without biases, of the features of all ranks.
    ///
    /// Tiles of it stay in the caches while decoders stream past, so all sources come to a tile before the next one's turn. Where ranks
    /// wait for each other it goes source by source, in the same order at each number: a decoder is here for as long as it is needed, and a
    /// target's sum over the ranks goes on while the next source is encoded.
    pub(super) fn forward<W: Stored<R>>(&self, params: &Parameters, work: &mut Workspace<R>, clock: &mut Clock) -> Result<()> {
        let (layers, mesh) = (self.dims.layers, self.context.strategy.mesh());
        let by_source = mesh.feature.size > 1 || self.context.takes(Layer::of(params, 0)?.decoder_position());
        if !by_source {
            for index in 0..layers {
                self.encode::<W>(&Layer::of(params, index)?, index, work, clock)?;
            }
            let decoders: Vec<Layer<'_>> = (0..layers).map(|index| Layer::of(params, index)).collect::<Result<_>>()?;
            for (index, layer) in decoders.iter().enumerate() {
                self.norms::<W>(params, layer, index, work)?;
            }
            return self.decode::<W>(&decoders, 0, work, clock);
        }
        let mut sums = FeatureSums::new(self.context, self.reach, layers);
        for index in 0..layers {
            let mut layer = Layer::of(params, index)?;
            layer.lend_encoder(params, self.context, Next::Decoder(index))?;
            self.encode::<W>(&layer, index, work, clock)?;
            layer.lend_decoder(params, self.context, if index + 1 < layers { Next::Encoder(index + 1) } else { Next::Decoder(0) })?;
            self.norms::<W>(params, &layer, index, work)?;
            self.decode::<W>(std::slice::from_ref(&layer), index, work, clock)?;
            sums.decoded(index, |target| work.errors[target].shallow_clone())?;
        }
        sums.wait()
    }

    /// Pre-activations of a layer, and of them the active entries, block by block.
    fn encode<W: Stored<R>>(&self, layer: &Layer<'_>, index: usize, work: &mut Workspace<R>, clock: &mut Clock) -> Result<()> {
        let (rows, scratch) = (self.rows, &work.scratch);
        let blocks = &mut work.layers[index];
        let w_enc = &layer.w_enc;
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
        let busy = self.pool.install(|| parts.try_reduce(|| [0.0; 2], sum))?;
        let Dims { d_model, d_features, .. } = self.dims;
        let (weights, entries) = (d_model * d_features, d_features * rows);
        let stage = |name, seconds, flop, bytes| StageCost { name, seconds, flop: flop as f64, bytes: bytes as f64 };
        clock.lap_shared([
            stage("encode", busy[0], 2 * rows * weights, weights * size_of::<W>()),
            stage("select", busy[1], 0, entries * size_of::<R>()),
        ]);
        Ok(())
    }

    /// The decoder norms of a layer, which are those of the micro-batch before if there was one.
    fn norms<W: Stored<R>>(&self, params: &Parameters, layer: &Layer<'_>, index: usize, work: &mut Workspace<R>) -> Result<()> {
        if self.context.accumulate {
            return Ok(());
        }
        let norms = &mut work.norms[index];
        let width = (self.reach)(self.dims.layers, index).len() * self.dims.d_model;
        let known = params.row_squares(layer.decoder_position()).filter(|known| known.len() == norms.len());
        let squares = match known {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(squares_of_rows::<R, W>(numbers(&layer.w_dec)?, width)?),
        };
        norms.iter_mut().zip(&*squares).for_each(|(norm, square)| *norm = R::of(square.sqrt()));
        Ok(())
    }

    /// Adds what some source layers write, which are those from `first` on, to the reconstruction. The first source of a target sets it to
    /// zero before.
    fn decode<W: Stored<R>>(&self, from: &[Layer<'_>], first: usize, work: &mut Workspace<R>, clock: &mut Clock) -> Result<()> {
        let those = first..first + from.len();
        let dense: Vec<bool> = those.clone().map(|layer| work.prefers_dense(layer)).collect();
        let Workspace { layers, tiles, errors, scratch, .. } = work;
        let scratch = &*scratch;
        let decoders = from.iter().map(|layer| numbers::<W>(&layer.w_dec)).collect::<Result<Vec<_>>>()?;
        let (reach, dims) = (self.reach, self.dims);
        let decode = |(tile, part): (&Tile, &mut [R])| -> Result<()> {
            let source = |source: usize| -> Option<Source<'_, R, W>> {
                let targets = reach(dims.layers, source);
                targets.contains(&tile.target).then(|| Source {
                    blocks: &layers[source],
                    decoder: decoders[source - first],
                    stride: targets.len() * dims.d_model,
                    offset: (tile.target - targets.start) * dims.d_model + tile.columns.start,
                    dense: dense[source - first],
                })
            };
            let sources: Vec<Source<'_, R, W>> = those.clone().filter_map(source).collect();
            if !(0..first).any(|earlier| reach(dims.layers, earlier).contains(&tile.target)) {
                part.fill(R::default());
            }
            let mut scratch = own(scratch);
            let scratch = numbers_mut(&mut scratch.products)?;
            Arch::new().dispatch(Decode { sources: &sources, tile: part, width: tile.columns.len(), scratch });
            Ok(())
        };
        // Sums over ranks may be under way on targets that no source from here on reaches.
        let reached = |target: usize| (first..dims.layers).any(|source| reach(dims.layers, source).contains(&target));
        let first_target = (0..dims.layers).find(|target| reached(*target)).unwrap_or(dims.layers);
        let tiles = &tiles[tiles.partition_point(|tile| tile.target < first_target)..];
        // The last tiles have the most sources: they come first, so that no thread is left alone with one.
        let tiled: Vec<_> = tiles.iter().zip(parts(&mut errors[first_target..], tiles, self.rows)?).rev().collect();
        self.pool.install(|| tiled.into_par_iter().with_max_len(1).try_for_each(decode))?;
        let width = |source: usize| reach(dims.layers, source).len() * dims.d_model;
        let active = |blocks: &[Block<R>]| blocks.iter().map(|block| block.values.len()).sum::<usize>();
        let sums = |what: &dyn Fn(usize) -> usize| those.clone().map(|source| width(source) * what(source)).sum::<usize>();
        clock.lap("decode", 2 * sums(&|source| active(&layers[source])), sums(&|_| dims.d_features) * size_of::<W>());
        Ok(())
    }

    /// The gradient of the squared error in the reconstruction's place; gives the squared error of each target layer.
    pub(super) fn residual(&self, params: &Parameters, work: &mut Workspace<R>) -> Result<Vec<f64>> {
        self.add_skips(params, work)?;
        let Workspace { tiles, errors, error_total, gradients, .. } = work;
        let targets = numbers::<R>(&self.targets)?;
        let (d_model, stride) = (self.dims.d_model, self.dims.layers * self.dims.d_model);
        let factor = R::of(2.0 / self.context.mean_rows as f64);
        let parts = parts(errors, tiles, self.rows)?;
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

    /// Adds the linear skips, where there are any, to the reconstruction.
    fn add_skips(&self, params: &Parameters, work: &Workspace<R>) -> Result<()> {
        for tile in &work.tiles {
            let layer = Layer::of(params, tile.target)?;
            let Some(skip) = layer.skip else { continue };
            let rows = skip.f_narrow(0, tile.columns.start as i64, tile.columns.len() as i64)?.f_to_kind(R::KIND)?;
            let mut part = tile.of(&work.errors[tile.target], self.rows)?;
            let _ = part.f_addmm_(&self.inputs.select(1, tile.target as i64), &rows.tr())?;
        }
        Ok(())
    }
}
