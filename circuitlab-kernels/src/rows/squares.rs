//! Sums of squares of rows. Whoever makes them makes the same bits: a run that reads them off the optimiser goes on as one that sums
//! them anew.

use circuitlab_core::Result;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::real::{Real, Stored};
use crate::threads::pool;

/// As many numbers of a row as are handed to a [`Square`] at a time; the last of a row may be fewer.
pub const AT_A_TIME: usize = 64;

/// Sums that run side by side.
const SUMS: usize = 4;

/// A sum of squares of one row, for who has the numbers in hand.
#[derive(Debug, Clone, Copy)]
pub struct Square<S: Simd, R: Real> {
    sums: [R::Lanes<S>; SUMS],
    end: R,
}

impl<S: Simd, R: Real> Square<S, R> {
    /// Of no numbers.
    #[inline(always)]
    pub fn new(simd: S) -> Self {
        Self { sums: [R::splat(simd, R::default()); SUMS], end: R::default() }
    }

    /// Adds the squares of the next [`AT_A_TIME`] numbers.
    #[inline(always)]
    pub fn add(&mut self, simd: S, numbers: &[R]) {
        let (vectors, end) = R::lanes::<S>(numbers);
        for vectors in vectors.chunks(SUMS) {
            for (sum, vector) in self.sums.iter_mut().zip(vectors) {
                *sum = R::fused(simd, *vector, *vector, *sum);
            }
        }
        self.end = end.iter().fold(self.end, |sum, number| number.mul_add(*number, sum));
    }

    /// The sum.
    #[inline(always)]
    pub fn total(self, simd: S) -> f64 {
        let [first, second, third, fourth] = self.sums;
        let vectors = R::plus(simd, R::plus(simd, first, second), R::plus(simd, third, fourth));
        (R::total(simd, vectors) + self.end).wide()
    }
}

/// The sum of squares of each row of `width` numbers.
///
/// # Errors
/// A system that gives no threads.
pub fn squares_of_rows<R: Real, W: Stored<R>>(numbers: &[W], width: usize) -> Result<Vec<f64>> {
    let width = width.max(1);
    let of_row = |wide: &mut Vec<R>, row| Arch::new().dispatch(OfRow::<R, W> { row, wide });
    Ok(pool()?.install(|| numbers.par_chunks(width).map_init(|| vec![R::default(); width], of_row).collect()))
}

/// [`Square`] of a whole row for a vector unit.
struct OfRow<'a, R, W> {
    row: &'a [W],
    wide: &'a mut [R],
}

impl<R: Real, W: Stored<R>> WithSimd for OfRow<'_, R, W> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let mut square = Square::new(simd);
        W::widened(self.row, self.wide).chunks(AT_A_TIME).for_each(|numbers| square.add(simd, numbers));
        square.total(simd)
    }
}
