//! How the reconstruction and its error are cut up: in tiles that a core's own cache holds, each with all rows of the batch and
//! some columns of one target layer.
//!
//! A tile lies in one piece, row after row, so that the entries of any feature read whole cache lines of it; while it is worked on,
//! decoder rows stream past.

use std::ops::Range;

use circuitlab_core::Result;
use tch::Tensor;

/// The bytes of a tile: what leaves room for decoder rows in a core's second-level cache.
const TILE_BYTES: usize = 1 << 20;

/// A cut is made at a multiple of so many columns, of which vectors are whole.
const COLUMNS: usize = 64;

/// Some columns of a target layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) target: usize,
    pub(super) columns: Range<usize>,
}

impl Tile {
    /// The tile in the numbers of its target layer, which lie tile after tile: a view, `[rows, columns]`.
    pub(super) fn of(&self, target: &Tensor, rows: usize) -> Result<Tensor> {
        let (rows, start, width) = (rows as i64, self.columns.start as i64, self.columns.len() as i64);
        Ok(target.f_narrow(0, rows * start, rows * width)?.f_view([rows, width])?)
    }
}

/// The tiles of all target layers, in order. `number_bytes` is the size of one number.
pub(super) fn tiles(layers: usize, d_model: usize, rows: usize, number_bytes: usize) -> Vec<Tile> {
    let widest = (TILE_BYTES / (rows * number_bytes).max(1)).max(COLUMNS);
    let pieces = d_model.div_ceil(widest).max(1);
    let width = d_model.div_ceil(pieces).next_multiple_of(COLUMNS).min(d_model);
    let starts = move || (0..d_model).step_by(width.max(1));
    let columns = move |start: usize| start..(start + width).min(d_model);
    (0..layers).flat_map(|target| starts().map(move |start| Tile { target, columns: columns(start) })).collect()
}

/// Cuts a buffer of all tiles up.
pub(super) fn split<'a, R>(mut buffer: &'a mut [R], tiles: &[Tile], rows: usize) -> Vec<&'a mut [R]> {
    let mut parts = Vec::with_capacity(tiles.len());
    for tile in tiles {
        let (part, rest) = buffer.split_at_mut(rows * tile.columns.len());
        parts.push(part);
        buffer = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tiles_cover_every_column_once(layers in 1_usize..5, d_model in 1_usize..3000, rows in 1_usize..5000, bytes in 4_usize..9) {
            let tiles = tiles(layers, d_model, rows, bytes);
            let covered: Vec<(usize, usize)> = tiles.iter().flat_map(|tile| tile.columns.clone().map(|column| (tile.target, column))).collect();
            let all: Vec<(usize, usize)> = (0..layers).flat_map(|target| (0..d_model).map(move |column| (target, column))).collect();
            prop_assert_eq!(covered, all);
            prop_assert!(tiles.iter().all(|tile| tile.columns.start.is_multiple_of(COLUMNS)));
            let mut buffer = vec![0_u8; layers * d_model];
            prop_assert_eq!(split(&mut buffer, &tiles, 1).len(), tiles.len());
        }
    }
}
