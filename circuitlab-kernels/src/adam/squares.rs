//! Sums of squares, for the norm of a gradient.

use circuitlab_core::Result;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::real::Real;
use crate::threads::pool;

/// Numbers that one thread sums before another may go on: the order of the sum does not depend on who does it.
const BLOCK: usize = 1 << 15;

/// Sums that run side by side, whatever the vector unit has room for.
const LANES: usize = 16;

/// The sum of squares in 64 bits, in a fixed order.
///
/// # Errors
/// A system that gives no threads.
pub fn square_sum<T: Real>(numbers: &[T]) -> Result<f64> {
    let sums: Vec<f64> = pool()?.install(|| numbers.par_chunks(BLOCK).map(|block| Arch::new().dispatch(OfBlock(block))).collect());
    Ok(sums.iter().sum())
}

/// [`of_block`] for a vector unit.
struct OfBlock<'a, T>(&'a [T]);

impl<T: Real> WithSimd for OfBlock<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        of_block(self.0)
    }
}

#[inline(always)]
fn of_block<T: Real>(block: &[T]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let mut add = |numbers: &[T; LANES]| {
        // Widened first and all of them: mixed with the sums, the compiler widens them one by one, at a fifth of the speed.
        let wide: [f64; LANES] = std::array::from_fn(|lane| numbers[lane].wide());
        for (sum, number) in sums.iter_mut().zip(wide) {
            *sum += number * number;
        }
    };
    let (whole, rest) = block.as_chunks::<LANES>();
    whole.iter().for_each(&mut add);
    let mut last = [T::default(); LANES];
    last[..rest.len()].copy_from_slice(rest);
    add(&last);
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn squares_add_up(count in 0_usize..70_000, seed in 0_u32..1000) {
            let numbers: Vec<f32> = (0..count as u32).map(|at| ((at ^ seed) as f32).sin()).collect();
            let want: f64 = numbers.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
            prop_assert!((square_sum(&numbers).expect("threads") - want).abs() <= 1e-12 * want);
        }
    }
}
