//! Decoding: the reconstruction of a tile, from the active entries of every source layer that writes to it.

use circuitlab_kernels::real::{Real, Stored};
use circuitlab_kernels::rows;
use pulp::{Simd, WithSimd};

use super::block::{Block, Order};
use super::spread::add_spread;

/// One source layer as a tile sees it.
pub(super) struct Source<'a, R, W> {
    pub(super) blocks: &'a [Block<R>],
    /// The decoder: `[features, targets, d_model]`.
    pub(super) decoder: &'a [W],
    /// Numbers of one feature's decoder.
    pub(super) stride: usize,
    /// Where the tile's columns begin in them.
    pub(super) offset: usize,
    /// Whether all entries are gone over.
    pub(super) dense: bool,
}

/// Adds the decoded entries of all sources to a tile.
pub(super) struct Decode<'a, R, W> {
    pub(super) sources: &'a [Source<'a, R, W>],
    /// `[rows, width]`, with the decoder bias or zeros in it.
    pub(super) tile: &'a mut [R],
    pub(super) width: usize,
    /// The tile's part of each feature's squared decoder norm: all features of one source after the other; empty where the norms are
    /// known.
    pub(super) squares: &'a mut [R],
    /// Memory for all entries of a block.
    pub(super) scratch: &'a mut [R],
}

impl<R: Real, W: Stored<R>> WithSimd for Decode<'_, R, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sources, tile, width, squares, scratch } = self;
        let mut wide = vec![R::default(); width];
        let mut pieces = Vec::new();
        let mut squares = squares.iter_mut();
        for source in sources {
            let piece = |feature: usize| source.decoder.get(feature * source.stride + source.offset..).and_then(|rest| rest.get(..width));
            for block in source.blocks {
                pieces.clear();
                for (place, feature) in block.features.clone().enumerate() {
                    if let Some(next) = piece(feature + 1) {
                        rows::prefetch(next);
                    }
                    let span = block.active.of(place);
                    let square = squares.next();
                    if span.is_empty() && square.is_none() && !source.dense {
                        continue;
                    }
                    let Some(row) = piece(feature) else { continue };
                    let decoder = W::widened(row, &mut wide);
                    if let Some(square) = square {
                        *square = rows::dot(simd, decoder, decoder);
                    }
                    if source.dense {
                        pieces.extend_from_slice(decoder);
                        continue;
                    }
                    for (row, value) in block.active.rows[span.clone()].iter().zip(&block.values[span]) {
                        rows::add_multiple(simd, &mut tile[*row as usize * width..][..width], *value, decoder);
                    }
                }
                if source.dense {
                    let row_count = tile.len() / width.max(1);
                    let factors = block.spread(&block.values, row_count, Order::Rows, scratch);
                    add_spread(simd, tile.chunks_mut(width.max(1)).collect(), factors, block.features.len(), &pieces, width);
                }
            }
        }
    }
}

/// Turns a tile of the reconstruction into the gradient of the squared error to it.
pub(super) struct Residual<'a, R> {
    /// `[rows, width]`.
    pub(super) tile: &'a mut [R],
    pub(super) width: usize,
    /// What should have been: the numbers of all rows, of which a row's columns begin at `row * stride + offset`.
    pub(super) targets: &'a [R],
    pub(super) stride: usize,
    pub(super) offset: usize,
    /// `2 / mean_rows`.
    pub(super) factor: R,
    /// Sum of the gradient over the rows: `[width]`.
    pub(super) total: &'a mut [R],
}

impl<R: Real> WithSimd for Residual<'_, R> {
    /// The squared error of the tile.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { tile, width, targets, stride, offset, factor, total } = self;
        total.fill(R::default());
        let mut squared = 0.0;
        for (row, tile) in tile.chunks_exact_mut(width).enumerate() {
            let target = &targets[row * stride + offset..][..width];
            for (number, target) in tile.iter_mut().zip(target) {
                *number = *number - *target;
            }
            squared += rows::dot(simd, tile, tile).wide();
            for (number, total) in tile.iter_mut().zip(total.iter_mut()) {
                *number = *number * factor;
                *total += *number;
            }
        }
        squared
    }
}
