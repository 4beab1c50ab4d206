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
    /// Memory for all entries of a block.
    pub(super) scratch: &'a mut [R],
}

impl<R: Real, W: Stored<R>> WithSimd for Decode<'_, R, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { sources, tile, width, scratch } = self;
        let mut wide = vec![R::default(); width];
        let mut pieces = Vec::new();
        for source in sources {
            let piece = |feature: usize| source.decoder.get(feature * source.stride + source.offset..).and_then(|rest| rest.get(..width));
            for block in source.blocks {
                pieces.clear();
                let first = block.features.start;
                let mut places = (0..block.features.len()).filter(|place| source.dense || !block.active.of(*place).is_empty()).peekable();
                while let Some(place) = places.next() {
                    // The next one lies a whole decoder away, where the processor does not look ahead by itself.
                    if let Some(next) = places.peek().and_then(|place| piece(first + place)) {
                        rows::prefetch(next);
                    }
                    let span = block.active.of(place);
                    let Some(row) = piece(first + place) else { continue };
                    let decoder = W::widened(row, &mut wide);
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
