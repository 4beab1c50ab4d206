//! What is at fault where a gradient is not finite. Looked for only then, so that it costs nothing in the good case.

use circuitlab_core::{Axis, Batch};
use tch::{Kind, Tensor};

use super::config::TrainConfig;
use crate::Error;
use crate::cache::{Rows, Sampler, SamplerState, Side};

/// Where the rows of a batch come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) rows: &'a Rows,
    pub(super) window_chunks: usize,
    /// The sequence of rows before the batch.
    pub(super) before: SamplerState,
    /// Rows of the batch over all ranks, and which of them are this rank's.
    pub(super) batch_rows: usize,
    pub(super) share: Axis,
}

impl<'a> Origin<'a> {
    /// The first rows of a run, all of them here.
    pub(super) fn of_one(rows: &'a Rows, config: &TrainConfig, before: SamplerState, count: usize) -> Self {
        Self { rows, window_chunks: config.data.window_chunks, before, batch_rows: count, share: Axis::SINGLE }
    }

    /// The error of the first number that is not finite among rows; nothing where all are.
    pub(super) fn fault(&self, what: &str, batch: &Batch) -> Option<Error> {
        let sides = [(Side::Inputs, &batch.inputs), (Side::Targets, &batch.targets)];
        let (side, row, layer, number) = sides.into_iter().find_map(|(side, values)| {
            let (row, layer, number) = first_fault(values)?;
            Some((side, row, layer, number))
        })?;
        let at = self.share.share(self.batch_rows).start + row;
        let place = Sampler::new(self.rows.chunk_rows(), self.window_chunks).ok()?.rows_from(self.before).nth(at)?;
        let found = self.rows.at_fault(place, layer, side, &format!("row {} holds {number}", place.row));
        Some(Error::Invalid(format!("{what} has rows that are not finite: {found}")))
    }
}

/// Row, layer and value of the first number that is not finite in `[rows, layer, d_model]`.
fn first_fault(values: &Tensor) -> Option<(usize, usize, &'static str)> {
    let bad = values.isfinite().logical_not();
    // Of each row and layer; the first of them is the one at fault.
    let places = bad.any_dim(2, false).nonzero();
    if places.size()[0] == 0 {
        return None;
    }
    let (row, layer) = (places.int64_value(&[0, 0]), places.int64_value(&[0, 1]));
    let is_nan = values.select(0, row).select(0, layer).isnan().any().to_kind(Kind::Int64).int64_value(&[]) != 0;
    Some((row as usize, layer as usize, if is_nan { "NaN" } else { "an infinity" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_is_found() {
        let values = |place: usize, value: f32| {
            let mut numbers = [0.5_f32; 12];
            numbers[place] = value;
            Tensor::from_slice(&numbers).view([2, 3, 2])
        };
        assert_eq!(first_fault(&values(0, 1.0)), None);
        assert_eq!(first_fault(&values(9, f32::NAN)), Some((1, 1, "NaN")));
        assert_eq!(first_fault(&values(4, f32::NEG_INFINITY)), Some((0, 2, "an infinity")));
    }
}
