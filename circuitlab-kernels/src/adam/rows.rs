//! The pass over rows, and those that it may pass over. Sums of squares of the rows are made on the way, while a row is in cache.
//!
//! A row without gradient need not be touched where that changes nothing: while both moments are zero still, or where `beta1` is 0, so
//! that the parameter rests and the second moment only decays. The decay is made up for when the row is next touched, by as many
//! multiplications as were left out: the result is the same to the bit. Made up for, a step costs a row in cache some tens of cycles;
//! from memory it would be thousands.

use std::ops::Range;

use circuitlab_core::{Error, Result};
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Factors, Step};
use crate::real::Real;
use crate::rows::{AT_A_TIME, Square, prefetch_after};
use crate::threads::pool;

/// In place of a number of missed steps: both moments of the row are still zero.
pub const NEVER: u32 = u32::MAX;

/// Numbers that a thread steps at a time.
const BLOCK: usize = 1 << 15;

/// How many bytes ahead memory is asked for: what is worked on while it comes.
const AHEAD: usize = 2048;

/// A parameter, what Adam keeps of it, and its gradient: `[rows, width]` each, but for `missed: [rows]`.
#[derive(Debug)]
pub struct Rows<'a, T> {
    /// Numbers of a row.
    pub width: usize,
    /// The parameter.
    pub value: &'a mut [T],
    /// Its copy in 16 bits, which is written anew for every row that changes.
    pub rounded: Option<&'a mut [bf16]>,
    /// First moment.
    pub first: &'a mut [T],
    /// Second moment.
    pub second: &'a mut [T],
    /// Gradient.
    pub gradient: &'a [T],
    /// How many steps each row has missed since it was last touched, or [`NEVER`] where its moments are zero still. Without it no row
    /// is passed over.
    pub missed: Option<&'a mut [u32]>,
    /// The sums of squares of the rows, as [`squares_of_rows`](crate::rows::squares_of_rows) gives them; brought up to date.
    pub squares: Option<&'a mut [f64]>,
}

/// Steps all rows.
///
/// # Errors
/// Lengths that do not fit together, and a system that gives no threads.
pub fn step<T: Real>(step: &Step, rows: Rows<'_, T>) -> Result<()> {
    rows.check()?;
    let factors = Factors::new(step);
    let blocks = rows.blocks();
    pool()?.install(|| {
        blocks.into_par_iter().for_each(|rows| Arch::new().dispatch(StepRows { rows, factors: &factors }));
    });
    Ok(())
}

/// Makes up for missed steps, so that the moments can be read. Rows that never had a gradient are left alone.
///
/// # Errors
/// Lengths that do not fit together, and a system that gives no threads.
pub fn settle<T: Real>(beta2: f64, width: usize, first: &mut [T], second: &mut [T], missed: &mut [u32]) -> Result<()> {
    if width == 0 || first.len() != second.len() || first.len() != width * missed.len() {
        return Err(misfit("settle", [first.len(), second.len(), width * missed.len()]));
    }
    let beta2 = T::of(beta2);
    pool()?.install(|| {
        let rows = first.par_chunks_mut(width).zip(second.par_chunks_mut(width)).zip(missed);
        rows.for_each(|((first, second), missed)| Arch::new().dispatch(MakeUp { beta2, first, second, missed }));
    });
    Ok(())
}

/// [`Rows::step`] for a vector unit. A closure in its place is not compiled for it, unless it is short.
struct StepRows<'a, 'b, T> {
    rows: Rows<'a, T>,
    factors: &'b Factors<T>,
}

impl<T: Real> WithSimd for StepRows<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.rows.step(simd, self.factors);
    }
}

/// [`make_up`] for a vector unit.
struct MakeUp<'a, T> {
    beta2: T,
    first: &'a mut [T],
    second: &'a mut [T],
    missed: &'a mut u32,
}

impl<T: Real> WithSimd for MakeUp<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        make_up(self.beta2, self.first, self.second, self.missed);
    }
}

fn misfit(what: &str, lengths: [usize; 3]) -> Error {
    Error::Invalid(format!("{what}: a parameter, its moments and its gradient are of different lengths: {lengths:?}"))
}

impl<T: Real> Rows<'_, T> {
    fn check(&self) -> Result<()> {
        let length = self.value.len();
        let rounded = self.rounded.as_ref().is_none_or(|rounded| rounded.len() == length);
        let of_rows = |rows: Option<usize>| rows.is_none_or(|rows| rows * self.width == length);
        let rows = of_rows(self.missed.as_ref().map(|missed| missed.len())) && of_rows(self.squares.as_ref().map(|squares| squares.len()));
        let lengths = [self.first.len(), self.second.len(), self.gradient.len()];
        if lengths.iter().all(|other| *other == length) && rounded && rows && (self.width > 0 || length == 0) {
            return Ok(());
        }
        Err(misfit("Adam", lengths))
    }

    /// Cuts it into blocks of whole rows; where nothing is kept of a row, rows need not be whole.
    fn blocks(self) -> Vec<Self> {
        let width = self.width.max(1);
        let whole = self.missed.is_some() || self.squares.is_some();
        let rows = if whole { (BLOCK / width).max(1) } else { BLOCK.div_ceil(width) };
        let length = rows * width;
        let mut rounded = self.rounded.map(|rounded| rounded.chunks_mut(length));
        let mut missed = self.missed.map(|missed| missed.chunks_mut(rows));
        let mut squares = self.squares.map(|squares| squares.chunks_mut(rows));
        let moments = self.first.chunks_mut(length).zip(self.second.chunks_mut(length));
        let values = self.value.chunks_mut(length).zip(self.gradient.chunks(length));
        let blocks = values.zip(moments).map(|((value, gradient), (first, second))| Self {
            width,
            value,
            rounded: rounded.as_mut().and_then(Iterator::next),
            first,
            second,
            gradient,
            missed: missed.as_mut().and_then(Iterator::next),
            squares: squares.as_mut().and_then(Iterator::next),
        });
        blocks.collect()
    }

    #[inline(always)]
    fn step<S: Simd>(mut self, simd: S, factors: &Factors<T>) {
        if self.missed.is_none() && self.squares.is_none() {
            self.update(simd, factors, 0..self.value.len());
            return;
        }
        let (missed, squares) = (self.missed.take(), self.squares.take());
        let mut missed = missed.map(|missed| missed.iter_mut());
        let mut squares = squares.map(|squares| squares.iter_mut());
        for row in 0..self.value.len() / self.width {
            let place = row * self.width..(row + 1) * self.width;
            let (missed, square) = (missed.as_mut().and_then(Iterator::next), squares.as_mut().and_then(Iterator::next));
            if let Some(missed) = missed
                && self.may_pass(factors, place.clone(), missed)
            {
                continue;
            }
            let squared = self.update(simd, factors, place);
            if let Some(square) = square {
                *square = squared;
            }
        }
    }

    /// Whether a row may be passed over, which is counted; else its moments are made ready to be stepped.
    #[inline(always)]
    fn may_pass(&mut self, factors: &Factors<T>, place: Range<usize>, missed: &mut u32) -> bool {
        if (*missed == NEVER || factors.beta1 == T::default()) && is_zero(&self.gradient[place.clone()]) {
            if *missed != NEVER {
                *missed = (*missed + 1).min(NEVER - 1);
            }
            return true;
        }
        make_up(factors.beta2, &mut self.first[place.clone()], &mut self.second[place], missed);
        *missed = 0;
        false
    }

    /// Steps some numbers, and gives the sum of their squares, which costs nothing while they are in registers.
    #[inline(always)]
    fn update<S: Simd>(&mut self, simd: S, factors: &Factors<T>, place: Range<usize>) -> f64 {
        let (values, value) = self.value[place.clone()].as_chunks_mut::<AT_A_TIME>();
        let (firsts, first) = self.first[place.clone()].as_chunks_mut::<AT_A_TIME>();
        let (seconds, second) = self.second[place.clone()].as_chunks_mut::<AT_A_TIME>();
        let (gradients, gradient) = self.gradient[place.clone()].as_chunks::<AT_A_TIME>();
        let mut square = Square::new(simd);
        for (((value, first), second), gradient) in values.iter_mut().zip(firsts).zip(seconds).zip(gradients) {
            for numbers in [&*value, &*first, &*second, gradient] {
                prefetch_after(numbers, AHEAD);
            }
            factors.update(value, first, second, gradient);
            square.add(simd, value);
        }
        factors.update(value, first, second, gradient);
        square.add(simd, value);
        if let Some(rounded) = &mut self.rounded {
            T::round(&self.value[place.clone()], &mut rounded[place]);
        }
        square.total(simd)
    }
}

#[inline(always)]
fn is_zero<T: Real>(numbers: &[T]) -> bool {
    numbers.chunks(64).all(|numbers| numbers.iter().filter(|number| **number != T::default()).count() == 0)
}

/// What the missed steps would have done to the moments of a row, all of them without gradient and with a `beta1` of 0.
#[inline(always)]
fn make_up<T: Real>(beta2: T, first: &mut [T], second: &mut [T], missed: &mut u32) {
    if *missed == 0 || *missed == NEVER {
        return;
    }
    first.fill(T::default());
    for numbers in second.chunks_mut(64) {
        for _ in 0..*missed {
            for number in &mut *numbers {
                *number = beta2 * *number;
            }
        }
    }
    *missed = 0;
}
