//! The order in which rows are trained on, as a function of a seed and a count.
//!
//! Each epoch takes the chunks in a new order, eight (or so) at a time: a window. The rows of a window are in random order,
//! and windows follow one another, so that every row comes once an epoch and few chunks are in memory at once.

use circuitlab_core::random::Permutation;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A place in the endless sequence of rows. It is all that a checkpoint needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplerState {
    /// Seed of the order.
    pub seed: u64,
    /// Rows drawn so far, by all ranks, over all epochs.
    pub drawn_rows: u64,
}

/// The order of the rows of some chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampler {
    chunk_rows: Vec<u64>,
    window_chunks: usize,
    rows: u64,
}

/// Chunks that are in memory together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// How often all rows were drawn before it.
    pub epoch: u64,
    /// Its number in the epoch.
    pub number: u64,
    /// Its chunks.
    pub chunks: Vec<usize>,
    /// Rows of the epoch before it.
    pub first_row: u64,
    /// Its rows.
    pub rows: u64,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowPlace {
    /// Its chunk.
    pub chunk: usize,
    /// Its row in the chunk.
    pub row: usize,
}

impl Sampler {
    /// An order over chunks of so many rows each, `window_chunks` of them at a time.
    ///
    /// # Errors
    /// No rows at all, or windows without chunks.
    pub fn new(chunk_rows: Vec<u64>, window_chunks: usize) -> Result<Self> {
        if window_chunks == 0 {
            return Err(Error::Invalid("`window_chunks` is 0, expected at least 1".to_owned()));
        }
        match chunk_rows.iter().try_fold(0_u64, |sum, rows| sum.checked_add(*rows)) {
            None | Some(0) => Err(Error::Invalid("the cache has no rows to draw".to_owned())),
            Some(rows) => Ok(Self { chunk_rows, window_chunks, rows }),
        }
    }

    /// Rows of an epoch.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The windows of an epoch, in order. None is empty.
    pub fn windows(&self, seed: u64, epoch: u64) -> Vec<Window> {
        let order = Permutation::new(seed, "epoch", epoch, self.chunk_rows.len() as u64);
        let chunks: Vec<usize> = (0..order.len()).map(|place| order.at(place) as usize).collect();
        let mut first_row = 0;
        let windows = chunks.chunks(self.window_chunks).enumerate().map(|(number, chunks)| {
            let rows = chunks.iter().map(|chunk| self.chunk_rows[*chunk]).sum();
            let window = Window { epoch, number: number as u64, chunks: chunks.to_vec(), first_row, rows };
            first_row += rows;
            window
        });
        windows.filter(|window| window.rows > 0).collect()
    }

    /// The windows from a state on, without end; the first is the one in which the next row lies.
    pub fn windows_from(&self, state: SamplerState) -> impl Iterator<Item = Window> + '_ {
        let (epoch, place) = (state.drawn_rows / self.rows, state.drawn_rows % self.rows);
        let rest = self.windows(state.seed, epoch).into_iter().filter(move |window| window.first_row + window.rows > place);
        rest.chain((epoch + 1..).flat_map(move |epoch| self.windows(state.seed, epoch)))
    }

    /// The order of a window's rows, which are counted through its chunks.
    pub fn order(&self, seed: u64, window: &Window) -> Permutation {
        // An epoch has at most as many windows as chunks.
        let index = window.epoch.wrapping_mul(self.chunk_rows.len() as u64).wrapping_add(window.number);
        Permutation::new(seed, "window", index, window.rows)
    }

    /// The rows from a state on, without end.
    pub fn rows_from(&self, state: SamplerState) -> impl Iterator<Item = RowPlace> + '_ {
        let place = state.drawn_rows % self.rows;
        let mut skip = None;
        self.windows_from(state).flat_map(move |window| {
            let begin = *skip.get_or_insert(place - window.first_row.min(place));
            skip = Some(0);
            let order = self.order(state.seed, &window);
            (begin..window.rows).filter_map(move |at| self.locate(&window, order.at(at)))
        })
    }

    /// The row number `row` of a window, counted through its chunks.
    fn locate(&self, window: &Window, row: u64) -> Option<RowPlace> {
        let mut row = row;
        for chunk in &window.chunks {
            let rows = self.chunk_rows[*chunk];
            if row < rows {
                return Some(RowPlace { chunk: *chunk, row: row as usize });
            }
            row -= rows;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(sampler: &Sampler, seed: u64, from: u64, count: usize) -> Vec<RowPlace> {
        sampler.rows_from(SamplerState { seed, drawn_rows: from }).take(count).collect()
    }

    proptest! {
        #[test]
        fn every_row_comes_once_an_epoch_and_resumes_anywhere(
            chunk_rows in prop::collection::vec(0_u64..9, 1..12),
            window_chunks in 1_usize..5,
            seed: u64,
            at in 0.0_f64..1.0,
        ) {
            prop_assume!(chunk_rows.iter().sum::<u64>() > 0);
            let sampler = Sampler::new(chunk_rows.clone(), window_chunks).expect("rows");
            let count = sampler.rows() as usize;
            let all = rows(&sampler, seed, 0, 3 * count);
            for epoch in all.chunks(count) {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                let every = chunk_rows.iter().enumerate().flat_map(|(chunk, rows)| (0..*rows as usize).map(move |row| RowPlace { chunk, row }));
                prop_assert!(epoch.into_iter().eq(every));
            }
            let from = (at * 2.0 * count as f64) as usize;
            prop_assert_eq!(rows(&sampler, seed, from as u64, count), &all[from..from + count]);
        }
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let sampler = Sampler::new(vec![50; 6], 2).expect("rows");
        let first = rows(&sampler, 1, 0, 300);
        assert_ne!(first, rows(&sampler, 1, 300, 300));
        assert_ne!(first, rows(&sampler, 2, 0, 300));
        // A window mixes its chunks.
        let runs = first[..100].windows(2).filter(|pair| pair[0].chunk != pair[1].chunk).count();
        assert!(runs > 30, "{runs}");
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(Sampler::new(vec![], 8).is_err() && Sampler::new(vec![0, 0], 8).is_err() && Sampler::new(vec![1], 0).is_err());
    }
}
