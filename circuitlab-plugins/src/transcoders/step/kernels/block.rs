//! The active entries of some features of one source layer, and what is known of each feature.
//!
//! Entries stand feature by feature, those of a feature in the order of the rows: so they come out of the selection, which goes
//! over the pre-activations of one feature after the other, and nothing is sorted.

use std::ops::Range;

/// Entries of each of some features: those of the `i`-th are `starts[i]..starts[i + 1]`.
#[derive(Debug, Default)]
pub(super) struct Spans {
    starts: Vec<usize>,
    /// The row of each entry.
    pub(super) rows: Vec<u32>,
}

impl Spans {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.starts.clear();
        self.starts.push(0);
    }

    /// Ends the entries of a feature.
    pub(super) fn close(&mut self) {
        self.starts.push(self.rows.len());
    }

    pub(super) fn of(&self, feature: usize) -> Range<usize> {
        self.starts[feature]..self.starts[feature + 1]
    }
}

/// What the pre-activation term and the thresholds need to know of a feature.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Silence<R> {
    /// Rows whose pre-activation is below the threshold.
    pub(super) below: usize,
    /// Sum of `theta - h` over them.
    pub(super) gap: R,
    /// Silent rows within the window of the threshold.
    pub(super) near: usize,
    /// Whether the listed rows are the silent ones outside the window, since they are fewer.
    pub(super) complement: bool,
}

/// Which of two axes comes first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// `[features, rows]`.
    Features,
    /// `[rows, features]`.
    Rows,
}

/// Some features of one source layer. Numbers per feature and per entry come in the order of `active`.
#[derive(Debug, Default)]
pub(super) struct Block<R> {
    /// Which features of the layer.
    pub(super) features: Range<usize>,
    pub(super) active: Spans,
    /// Activation of each active entry.
    pub(super) values: Vec<R>,
    pub(super) silence: Vec<Silence<R>>,
    /// Silent rows within the window, or outside it.
    pub(super) silent: Spans,
    /// Features, counted from the block's first, with rows on which they stand at the very threshold.
    pub(super) ties: Vec<(usize, u32)>,
    /// Sum of the gradient of the sparsity term to each feature's active entries.
    pub(super) pulls: Vec<R>,
    /// Gradient to each feature's decoder norm, divided by the norm.
    pub(super) per_norm: Vec<R>,
    /// Gradient to each active entry: of the sparsity term, then of the whole loss. Lent for the layer's backward pass.
    pub(super) grads: Vec<R>,
    /// Gradient of the squared error to each feature's activation, summed over the listed silent rows' side of the window.
    pub(super) silent_grads: Vec<R>,
    /// The two penalty terms, weighted.
    pub(super) penalties: [f64; 2],
}

impl<R: Copy + Default> Block<R> {
    pub(super) fn new(features: Range<usize>) -> Self {
        Self { features, ..Self::default() }
    }

    /// The numbers of all active entries with zeros between them, `[features, rows]` or `[rows, features]`, in `scratch`.
    pub(super) fn spread<'a>(&self, numbers: &[R], rows: usize, order: Order, scratch: &'a mut [R]) -> &'a [R] {
        let features = self.features.len();
        let spread = &mut scratch[..features * rows];
        spread.fill(R::default());
        for feature in 0..features {
            let span = self.active.of(feature);
            for (row, number) in self.active.rows[span.clone()].iter().zip(&numbers[span]) {
                let place = match order {
                    Order::Features => feature * rows + *row as usize,
                    Order::Rows => *row as usize * features + feature,
                };
                spread[place] = *number;
            }
        }
        spread
    }

    /// Appends rows to the active ones, with their values, where these are above a threshold, else to the silent ones; gives how many are
    /// active.
    ///
    /// Each is written to both lists, of which one goes on: which one no processor can guess.
    #[inline(always)]
    pub(super) fn part(&mut self, rows: &[u32], value: impl Fn(u32) -> R, threshold: R) -> usize
    where
        R: PartialOrd,
    {
        let [before, mut silent] = [self.active.rows.len(), self.silent.rows.len()];
        let mut active = before;
        let done = self.silence.len() + 1;
        let left = self.features.len().saturating_sub(done);
        for list in [&mut self.active.rows, &mut self.silent.rows] {
            make_room(list, rows.len(), left, done);
            list.resize(list.len() + rows.len(), 0);
        }
        make_room(&mut self.values, rows.len(), left, done);
        self.values.resize(active + rows.len(), R::default());
        for &row in rows {
            let value = value(row);
            self.active.rows[active] = row;
            self.values[active] = value;
            self.silent.rows[silent] = row;
            let above = usize::from(value > threshold);
            active += above;
            silent += 1 - above;
        }
        self.active.rows.truncate(active);
        self.values.truncate(active);
        self.silent.rows.truncate(silent);
        active - before
    }

    /// Forgets the entries of the last step, and keeps their memory.
    pub(super) fn clear(&mut self) {
        self.active.clear();
        self.silent.clear();
        self.values.clear();
        self.silence.clear();
        self.ties.clear();
    }
}

/// Makes room for so many more, and for as many for each feature that is left as for those that are done, but no further: with many active
/// features these lists are what a step takes most memory for.
fn make_room<T>(list: &mut Vec<T>, more: usize, left: usize, done: usize) {
    if list.capacity() - list.len() < more {
        list.reserve_exact(more + list.len() * left / done);
    }
}
