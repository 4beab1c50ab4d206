//! A window of chunks in memory.

use circuitlab_core::random::Permutation;
use rayon::prelude::*;

use super::chunk::Side;
use super::open::{Cache, Normalisation};
use super::sampler::Window;
use crate::Result;

/// The decoded chunks of a window.
pub(super) struct DecodedWindow {
    pub(super) window: Window,
    pub(super) order: Permutation,
    chunks: Vec<DecodedChunk>,
}

struct DecodedChunk {
    rows: usize,
    /// `[layer][rows * d_model]`.
    inputs: Vec<Vec<f32>>,
    targets: Vec<Vec<f32>>,
}

/// Row factors in the type of the rows.
pub(super) struct Scales {
    inputs: Vec<f32>,
    targets: Vec<f32>,
}

impl Scales {
    pub(super) fn new(normalisation: &Normalisation) -> Self {
        let narrow = |scales: &[f64]| scales.iter().map(|scale| *scale as f32).collect();
        Self { inputs: narrow(&normalisation.input_scales), targets: narrow(&normalisation.target_scales) }
    }
}

impl DecodedWindow {
    /// Reads and decodes all chunks; `stopped` is asked between them and gives nothing when it says so.
    pub(super) fn read(cache: &Cache, window: Window, order: Permutation, stopped: impl Fn() -> bool) -> Result<Option<Self>> {
        let mut chunks = Vec::with_capacity(window.chunks.len());
        for chunk in &window.chunks {
            if stopped() {
                return Ok(None);
            }
            chunks.push(DecodedChunk::read(cache, *chunk)?);
        }
        Ok(Some(Self { window, order, chunks }))
    }

    /// Copies the rows at some places of the order, scaled, to `inputs` and `targets`: `[rows, layer, d_model]`.
    pub(super) fn gather(&self, places: std::ops::Range<u64>, scales: &Scales, inputs: &mut [f32], targets: &mut [f32]) {
        let row_length = inputs.len().checked_div((places.end - places.start) as usize).unwrap_or(0);
        if row_length == 0 {
            return;
        }
        let rows = inputs.par_chunks_mut(row_length).zip(targets.par_chunks_mut(row_length)).enumerate();
        rows.with_min_len(16).for_each(|(number, (inputs, targets))| {
            if let Some((chunk, row)) = self.find(self.order.at(places.start + number as u64) as usize) {
                copy(&chunk.inputs, row, &scales.inputs, inputs);
                copy(&chunk.targets, row, &scales.targets, targets);
            }
        });
    }

    fn find(&self, row: usize) -> Option<(&DecodedChunk, usize)> {
        let mut row = row;
        for chunk in &self.chunks {
            if row < chunk.rows {
                return Some((chunk, row));
            }
            row -= chunk.rows;
        }
        None
    }
}

impl DecodedChunk {
    fn read(cache: &Cache, chunk: usize) -> Result<Self> {
        let layers = cache.identity().layers;
        // One reader for each layer: they seek in the same file.
        let decoded = (0..layers).into_par_iter().map(|layer| {
            let mut reader = cache.chunk(chunk)?;
            Ok((reader.values(layer, Side::Inputs)?, reader.values(layer, Side::Targets)?))
        });
        let (inputs, targets) = decoded.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok(Self { rows: cache.chunk_rows_of(chunk), inputs, targets })
    }
}

fn copy(layers: &[Vec<f32>], row: usize, scales: &[f32], to: &mut [f32]) {
    let width = to.len() / layers.len().max(1);
    for ((values, scale), to) in layers.iter().zip(scales).zip(to.chunks_exact_mut(width.max(1))) {
        for (to, value) in to.iter_mut().zip(&values[row * width..(row + 1) * width]) {
            *to = value * scale;
        }
    }
}
