//! What ranks send to each other in a step.

use circuitlab_core::{Axis, Dims, ParameterSpec, Precision};
use serde::Serialize;
use tch::Kind;

use super::layout::Layout;

/// What one rank sends in a step along one axis of the mesh, in one kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Communication {
    /// `data` or `feature`.
    pub axis: &'static str,
    /// `sum`, `gather` or `scatter` (a sum of which each rank gets its share).
    pub operation: &'static str,
    /// Bytes that the first rank sends, as a ring does it: of a tensor of `s` bytes and `n` ranks `2 s (n - 1) / n` in a sum, its share
    /// `n - 1` times in a gather, and all but its share in a scatter. Where rows or features do not divide by the ranks, other ranks' are
    /// more by one row's or feature's.
    pub bytes: u64,
}

/// What is sent in a step, an entry for each axis and operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Traffic(Vec<Communication>);

/// What a transcoder's traffic depends on.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    pub(super) specs: &'a [ParameterSpec],
    pub(super) dims: Dims,
    pub(super) layout: Layout,
    /// What the run computes in.
    pub(super) kind: Kind,
    /// Rows of a batch, over all ranks.
    pub(super) batch_rows: usize,
    /// Micro-batches of a step.
    pub(super) pieces: usize,
    /// Bytes of a term of the loss.
    pub(super) term_bytes: u64,
}

/// Bytes of a number that all ranks know: a square, a wish.
const NUMBER: u64 = 8;

/// Of a row, which is sent as it was decoded.
const ROW_NUMBER: u64 = 4;

impl Traffic {
    /// That of one transcoder.
    pub(super) fn of_transcoder(sizes: &Sizes<'_>) -> Self {
        let Sizes { specs, dims, layout, kind, pieces, term_bytes, .. } = sizes;
        let full = Precision::Full.kind(*kind).elt_size_in_bytes() as u64;
        let (mut all, pieces) = (Self::default(), *pieces as u64);
        // Reconstructions of all micro-batches, which are one batch together.
        let rows = first_of(layout.data).share(sizes.batch_rows).len() as u64;
        all.sum("feature", layout.feature, rows * (dims.layers * dims.d_model) as u64 * full);
        // Of each micro-batch the squared error and two penalties, and of the step the squares of the gradient.
        all.sum("data", layout.data, pieces * 3 * term_bytes);
        all.sum("feature", layout.feature, pieces * 2 * term_bytes + NUMBER);
        for spec in *specs {
            let shape = Shape::of(spec, *layout);
            if layout.splits(spec) {
                // An encoder is gathered for the forward pass alone, a decoder for the backward pass too.
                let times = if spec.shape.len() > 2 { 2 } else { 1 };
                all.gather("data", layout.data, pieces * times * shape.bytes(spec.precision.kind(*kind)), shape.rows);
                all.scatter("data", layout.data, pieces * shape.bytes(Precision::Full.kind(*kind)), shape.rows);
            } else {
                all.sum("data", layout.data, shape.bytes(Precision::Full.kind(*kind)));
            }
        }
        if layout.sharded {
            all.sum("data", layout.data, NUMBER);
        }
        all
    }

    /// What is sent once a step, however many transcoders there are: the targets' mean, whether to stop, and rows that are read in parts.
    /// A row has so many numbers on either side.
    pub(super) fn of_stream(numbers: usize, layout: Layout, batch_rows: usize, in_parts: bool) -> Self {
        let (mut all, numbers) = (Self::default(), numbers as u64);
        all.sum("data", layout.data, numbers * 8 + NUMBER);
        all.sum("feature", layout.feature, NUMBER);
        if in_parts {
            let rows = first_of(layout.data).share(batch_rows).len() as u64;
            all.gather("feature", layout.feature, rows * 2 * numbers * ROW_NUMBER, rows);
        }
        all
    }

    fn sum(&mut self, axis: &'static str, ranks: usize, bytes: u64) {
        let ranks = ranks as u64;
        self.add(axis, "sum", 2 * bytes * (ranks - 1) / ranks);
    }

    /// Of a whole of so many bytes, whose rows are shared out.
    fn gather(&mut self, axis: &'static str, ranks: usize, bytes: u64, rows: u64) {
        // All send as much as the one that has most.
        self.add(axis, "gather", bytes / rows.max(1) * rows.div_ceil(ranks as u64) * (ranks as u64 - 1));
    }

    fn scatter(&mut self, axis: &'static str, ranks: usize, bytes: u64, rows: u64) {
        let own = first_of(ranks).share(rows as usize).len() as u64;
        self.add(axis, "scatter", bytes / rows.max(1) * (rows - own));
    }

    fn add(&mut self, axis: &'static str, operation: &'static str, bytes: u64) {
        if bytes == 0 {
            return;
        }
        match self.0.iter_mut().find(|known| (known.axis, known.operation) == (axis, operation)) {
            Some(known) => known.bytes += bytes,
            None => self.0.push(Communication { axis, operation, bytes }),
        }
    }

    /// Both.
    pub(super) fn with(mut self, other: &Self) -> Self {
        for Communication { axis, operation, bytes } in &other.0 {
            self.add(axis, operation, *bytes);
        }
        self
    }

    pub(super) fn into_list(self) -> Vec<Communication> {
        self.0
    }
}

/// The first rank of so many.
fn first_of(size: usize) -> Axis {
    Axis { rank: 0, size }
}

/// What the first rank of a feature axis has of a parameter.
struct Shape {
    rows: u64,
    /// Numbers of a row.
    row: u64,
}

impl Shape {
    fn of(spec: &ParameterSpec, layout: Layout) -> Self {
        let mut axes = spec.shape.iter().map(|size| size.unsigned_abs());
        let rows = axes.next().unwrap_or(1);
        let here = first_of(if spec.per_feature { layout.feature } else { 1 }).share(rows as usize).len();
        Self { rows: here as u64, row: axes.product() }
    }

    fn bytes(&self, kind: Kind) -> u64 {
        self.rows * self.row * kind.elt_size_in_bytes() as u64
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Init, Update};

    use super::*;

    /// One layer of 9 features, 4 wide, with two targets.
    fn specs() -> Vec<ParameterSpec> {
        [("W_enc", vec![9, 4]), ("b_enc", vec![9]), ("W_dec", vec![9, 2, 4]), ("b_dec", vec![4])]
            .map(|(name, shape)| ParameterSpec {
                name: name.into(),
                layer: 0,
                precision: if shape.len() > 1 { Precision::Compute } else { Precision::Full },
                shape,
                init: Init::Constant(0.0),
                per_feature: name != "b_dec",
                update: Update::Gradient,
            })
            .into()
    }

    fn of(kind: Kind, data: usize, feature: usize, sharded: bool) -> Vec<(&'static str, &'static str, u64)> {
        let (specs, layout) = (specs(), Layout { data, feature, sharded });
        let dims = Dims { layers: 1, d_model: 4, d_features: 9 };
        let sizes = Sizes { specs: &specs, dims, layout, kind, batch_rows: 10, pieces: 3, term_bytes: 8 };
        let all = Traffic::of_transcoder(&sizes).with(&Traffic::of_stream(4, layout, 10, false));
        all.into_list().iter().map(|sent| (sent.axis, sent.operation, sent.bytes)).collect()
    }

    #[test]
    fn one_rank_sends_nothing() {
        assert_eq!(of(Kind::Float, 1, 1, false), []);
    }

    #[test]
    fn sums_are_those_of_the_step() {
        // Two ranks send as much as they have. 3 x 3 terms, 36 + 9 + 72 + 4 gradients, a mean of 4 numbers and a wish.
        assert_eq!(of(Kind::Float, 2, 1, false), [("data", "sum", 9 * 8 + 121 * 4 + 4 * 8 + 8)]);
        // Ten rows of 4 numbers; 3 x 2 terms, the squares and a wish.
        assert_eq!(of(Kind::Double, 1, 2, false), [("feature", "sum", 10 * 4 * 8 + 6 * 8 + 8 + 8)]);
        // Half of the rows; 4 of the 9 features.
        let gradients = 4 * 4 + 4 + 4 * 8 + 4;
        let data = 9 * 8 + gradients * 4 + 4 * 8 + 8;
        assert_eq!(of(Kind::Float, 2, 2, false), [("feature", "sum", 5 * 4 * 4 + 64), ("data", "sum", data)]);
    }

    #[test]
    fn parts_of_rows_are_gathered() {
        let layout = |data, feature| Layout { data, feature, sharded: false };
        let of = |layout| Traffic::of_stream(4, layout, 11, true).into_list();
        // Five of 11 rows are the first data rank's; each feature rank sends as if it had 3, of 4 numbers on either side.
        let want = [("data", "sum", 4 * 8 + 8), ("feature", "sum", 8), ("feature", "gather", 3 * 2 * 4 * 4)];
        assert_eq!(of(layout(2, 2)), want.map(|(axis, operation, bytes)| Communication { axis, operation, bytes }));
        assert_eq!(of(layout(1, 1)), []);
    }

    #[test]
    fn shards_are_gathered_and_scattered() {
        // Of the 9 features 4 are the first rank's, and 5 are sent: as many as another has. Decoders twice, in 16 bits; gradients in 32.
        let (gather, scatter) = (3 * 5 * (4 + 2 * 8) * 2, 3 * 5 * (4 + 8) * 4);
        let sum = 9 * 8 + (9 + 4) * 4 + 8 + 4 * 8 + 8;
        assert_eq!(of(Kind::BFloat16, 2, 1, true), [("data", "sum", sum), ("data", "gather", gather), ("data", "scatter", scatter)]);
    }
}
