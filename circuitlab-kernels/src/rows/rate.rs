//! How fast rows are added up here.

use std::time::Instant;

use pulp::{Arch, Simd, WithSimd};

use super::add_rows;

const ROWS: usize = 512;
const WIDTH: usize = 256;

/// Sums of some rows of a tile that a core's cache holds.
struct Sums<'a> {
    outs: &'a mut [f32],
    rows: &'a [f32],
    places: &'a [u32],
    factors: &'a [f32],
}

impl WithSimd for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let groups = self.places.chunks_exact(8).zip(self.factors.chunks_exact(8));
        for (out, (places, factors)) in self.outs.chunks_exact_mut(WIDTH).zip(groups) {
            add_rows(simd, out, factors, places, self.rows);
        }
    }
}

/// Floating-point operations in a second of one thread that adds up rows by places, as the steps over active entries do: measured, in a
/// few milliseconds.
pub fn flop_per_s() -> f64 {
    let rows = vec![1.0_f32; ROWS * WIDTH];
    // Rows in no order, each about as often as the others.
    let places: Vec<u32> = (0..ROWS as u32 * 4).map(|place| place * 197 % ROWS as u32).collect();
    let factors = vec![0.5_f32; places.len()];
    let mut outs = vec![0.0_f32; places.len() / 8 * WIDTH];
    let mut time = || {
        let began = Instant::now();
        Arch::new().dispatch(Sums { outs: &mut outs, rows: &rows, places: &places, factors: &factors });
        began.elapsed().as_secs_f64()
    };
    let shortest = (0..8).map(|_| time()).fold(f64::INFINITY, f64::min);
    2.0 * (factors.len() * WIDTH) as f64 / shortest.max(f64::MIN_POSITIVE)
}
