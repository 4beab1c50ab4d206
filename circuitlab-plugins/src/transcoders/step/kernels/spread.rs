//! The dense forms of what goes over active entries: over all of them, those that are zero included, several rows at a time. Where many
//! are active that is faster. The results are the same to the bit, so that which form is taken may hang on measured times.

use std::time::Instant;

use circuitlab_kernels::real::Real;
use circuitlab_kernels::rows;
use pulp::{Arch, Simd, WithSimd};

/// Adds to each of `outs` its multiples of all rows, by factors that stand `[out, row]`; gives the sum of the squares of all outs.
#[inline(always)]
pub(super) fn add_spread<S: Simd, R: Real>(
    simd: S,
    outs: Vec<&mut [R]>,
    factors: &[R],
    row_count: usize,
    rows: &[R],
    stride: usize,
) -> f64 {
    let mut squares = 0.0;
    let mut outs = outs.into_iter();
    let mut factors = factors.chunks_exact(row_count.max(1));
    let places: Vec<u32> = (0..row_count as u32).collect();
    loop {
        let group: Vec<(&mut [R], &[R])> = outs.by_ref().zip(factors.by_ref()).take(rows::GROUP).collect();
        if group.is_empty() {
            return squares;
        }
        match <[(&mut [R], &[R]); rows::GROUP]>::try_from(group) {
            Ok(mut group) => {
                let factors = group.each_ref().map(|(_, factors)| *factors);
                rows::add_all_rows(simd, group.each_mut().map(|(out, _)| &mut **out), factors, rows, stride);
                for (out, _) in &group {
                    squares += rows::dot(simd, out, out).wide();
                }
            }
            Err(rest) => {
                for (out, factors) in rest {
                    rows::add_rows(simd, out, factors, &places, rows);
                    squares += rows::dot(simd, out, out).wide();
                }
            }
        }
    }
}

/// Seconds that a form takes for one entry and one column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// Of an active entry, where only these are gone over.
    sparse: f64,
    /// Of any entry, where all are gone over.
    dense: f64,
}

#[cfg(test)]
impl Costs {
    pub(super) const ALWAYS_DENSE: Self = Self { sparse: 1.0, dense: 0.0 };
    pub(super) const ALWAYS_SPARSE: Self = Self { sparse: 0.0, dense: 1.0 };
}

impl Costs {
    /// Measures both forms on this machine, in a few milliseconds.
    pub(super) fn measure<R: Real>() -> Self {
        const ROWS: usize = 256;
        const WIDTH: usize = 256;
        const FEATURES: usize = 32;
        let rows: Vec<R> = (0..ROWS * WIDTH).map(|number| R::of((number % 17) as f64 / 16.0)).collect();
        let factors: Vec<R> = (0..FEATURES * ROWS).map(|number| R::of((number % 13) as f64 / 12.0)).collect();
        let mut outs = vec![R::default(); FEATURES * WIDTH];
        // Every fourth row, as where it begins to matter.
        let places: Vec<u32> = (0..ROWS as u32).step_by(4).collect();
        let mut best = |entries: usize, places: Option<&[u32]>| {
            let mut time = || {
                let began = Instant::now();
                Arch::new().dispatch(Trial { outs: &mut outs, factors: &factors, rows: &rows, width: WIDTH, places });
                began.elapsed().as_secs_f64() / (entries * WIDTH) as f64
            };
            (0..5).map(|_| time()).fold(f64::INFINITY, f64::min)
        };
        Self { sparse: best(FEATURES * places.len(), Some(&places)), dense: best(FEATURES * ROWS, None) }
    }

    /// Whether going over all entries is the cheaper way to so many active ones.
    pub(super) fn prefers_dense(self, active: usize, all: usize) -> bool {
        active as f64 * self.sparse > all as f64 * self.dense
    }
}

/// Either form over made-up numbers.
struct Trial<'a, R> {
    outs: &'a mut [R],
    factors: &'a [R],
    rows: &'a [R],
    width: usize,
    /// The rows of every feature's entries; all where there are none.
    places: Option<&'a [u32]>,
}

impl<R: Real> WithSimd for Trial<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { outs, factors, rows, width, places } = self;
        let row_count = rows.len() / width;
        match places {
            None => {
                add_spread(simd, outs.chunks_mut(width).collect(), factors, row_count, rows, width);
            }
            Some(places) => {
                for (out, factors) in outs.chunks_mut(width).zip(factors.chunks(row_count)) {
                    rows::add_rows(simd, out, &factors[..places.len()], places, rows);
                }
            }
        }
    }
}
