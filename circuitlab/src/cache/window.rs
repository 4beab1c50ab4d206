//! A window of chunks in memory.
//!
//! Where the codec can give single rows, a window is kept as it is encoded, and rows are decoded straight into the batch: int8 takes a
//! quarter of the memory that its values would, and each value is written once. Otherwise blocks are decoded when the window is read.

use std::ops::Range;
use std::sync::Arc;

use circuitlab_core::BlockShape;
use circuitlab_core::random::Permutation;
use rayon::prelude::*;

use super::chunk::Side;
use super::open::{Cache, Normalisation};
use super::pool::Pool;
use super::rows::Rows;
use super::sampler::Window;
use crate::{Error, Result};

/// The chunks of a window.
pub(super) struct LoadedWindow {
    pub(super) window: Window,
    pub(super) order: Permutation,
    chunks: Vec<LoadedChunk>,
    pool: Arc<Pool>,
}

struct LoadedChunk {
    number: usize,
    shape: BlockShape,
    blocks: Blocks,
}

/// Inputs and outputs of layer 0, of layer 1, ...
enum Blocks {
    /// What `decode_rows` of the cache's chain takes.
    Encoded(Arc<Cache>, Vec<Vec<u8>>),
    /// `[rows * d_model]` each.
    Decoded(Vec<Vec<f32>>),
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

impl LoadedWindow {
    /// Reads all chunks; `stopped` is asked between them and gives nothing when it says so.
    pub(super) fn read(
        source: &Rows,
        window: Window,
        order: Permutation,
        pool: &Arc<Pool>,
        stopped: impl Fn() -> bool,
    ) -> Result<Option<Self>> {
        // Made first, so that its drop gives the memory of half a window back too.
        let chunks = Vec::with_capacity(window.chunks.len());
        let mut read = Self { window, order, chunks, pool: Arc::clone(pool) };
        for number in read.window.chunks.clone() {
            if stopped() {
                return Ok(None);
            }
            read.chunks.push(LoadedChunk::load(source, number, pool)?);
        }
        Ok(Some(read))
    }

    /// Decodes the rows at some places of the order, scaled, to `inputs` and `targets`: `[rows, layer, d_model]`.
    pub(super) fn gather(&self, places: Range<u64>, scales: &Scales, inputs: &mut [f32], targets: &mut [f32]) -> Result<()> {
        let row_length = inputs.len().checked_div((places.end - places.start) as usize).unwrap_or(0);
        if row_length == 0 {
            return Ok(());
        }
        let rows = inputs.par_chunks_mut(row_length).zip(targets.par_chunks_mut(row_length)).enumerate();
        rows.with_min_len(16).try_for_each(|(number, (inputs, targets))| {
            let place = self.order.at(places.start + number as u64) as usize;
            let (chunk, row) = self.find(place).ok_or_else(|| Error::Invalid(format!("the window has no row {place}")))?;
            chunk.decode(row, Side::Inputs, &scales.inputs, inputs)?;
            chunk.decode(row, Side::Targets, &scales.targets, targets)
        })
    }

    fn find(&self, row: usize) -> Option<(&LoadedChunk, usize)> {
        let mut row = row;
        for chunk in &self.chunks {
            if row < chunk.shape.rows {
                return Some((chunk, row));
            }
            row -= chunk.shape.rows;
        }
        None
    }
}

impl LoadedChunk {
    /// One side of one row: `[layer, d_model]`.
    fn decode(&self, row: usize, side: Side, scales: &[f32], to: &mut [f32]) -> Result<()> {
        let width = self.shape.width;
        for (layer, (to, scale)) in to.chunks_exact_mut(width.max(1)).zip(scales).enumerate() {
            let block = 2 * layer + usize::from(side == Side::Targets);
            match &self.blocks {
                Blocks::Encoded(cache, blocks) => {
                    let decoded = cache.codec().decode_rows(&blocks[block], self.shape, row, to);
                    decoded.map_err(|error| self.damage(cache, block, &error))?;
                }
                Blocks::Decoded(blocks) => to.copy_from_slice(&blocks[block][row * width..(row + 1) * width]),
            }
            for value in to {
                *value *= scale;
            }
        }
        Ok(())
    }

    fn damage(&self, cache: &Cache, block: usize, error: &circuitlab_core::Error) -> Error {
        match cache.chunk(self.number) {
            Ok(reader) => reader.of_block(block, error),
            Err(error) => error,
        }
    }

    fn load(source: &Rows, number: usize, pool: &Pool) -> Result<Self> {
        match source {
            Rows::Cached(cache) => Self::read(cache, number, pool),
            Rows::Made(made) => {
                let (shape, blocks) = made.chunk(number)?;
                Ok(Self { number, shape, blocks: Blocks::Decoded(blocks) })
            }
        }
    }

    fn read(cache: &Arc<Cache>, number: usize, pool: &Pool) -> Result<Self> {
        let reader = cache.chunk(number)?;
        let shape = reader.shape();
        let blocks = reader.unpacked(pool)?;
        if cache.codec().has_row_access() {
            return Ok(Self { number, shape, blocks: Blocks::Encoded(Arc::clone(cache), blocks) });
        }
        let values = shape.values()?;
        let decoded = blocks.into_par_iter().enumerate().map(|(block, bytes)| {
            let mut decoded = vec![0.0; values];
            cache.codec().decode_rows(&bytes, shape, 0, &mut decoded).map_err(|error| reader.of_block(block, &error))?;
            pool.give_back(bytes);
            Ok(decoded)
        });
        Ok(Self { number, shape, blocks: Blocks::Decoded(decoded.collect::<Result<_>>()?) })
    }
}

impl Drop for LoadedWindow {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            if let Blocks::Encoded(_, blocks) = chunk.blocks {
                for block in blocks {
                    self.pool.give_back(block);
                }
            }
        }
    }
}
