//! What a threshold leaves of a row.

use pulp::Simd;

use crate::real::Real;

/// What [`scan`] finds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scan<R> {
    /// Numbers below the threshold.
    pub below: usize,
    /// By how much they are below it, in all.
    pub gap: R,
    /// Places that were listed.
    pub found: usize,
}

/// Goes over `numbers + shift` once: counts those below `threshold`, and lists the places of those that are less than `reach` below it,
/// or above it, in `places`, which is longer than `numbers`.
#[inline(always)]
pub fn scan<S: Simd, R: Real>(simd: S, numbers: &[R], shift: R, threshold: R, reach: R, places: &mut [u32]) -> Scan<R> {
    let (vectors, end) = R::lanes::<S>(numbers);
    let lanes = R::lane_count::<S>();
    let [zero, one] = [0.0, 1.0].map(|number| R::splat(simd, R::of(number)));
    let [wide_shift, wide_threshold, wide_floor] = [shift, threshold, -reach].map(|number| R::splat(simd, number));
    let mut all = Scan::default();
    // Counted in lanes of the same type, which hold whole numbers of this size exactly.
    for (run, run_vectors) in vectors.chunks(1 << 16).enumerate() {
        let (mut counts, mut gaps) = (zero, zero);
        for (place, vector) in run_vectors.iter().enumerate() {
            let distance = R::minus(simd, R::plus(simd, *vector, wide_shift), wide_threshold);
            counts = R::plus(simd, counts, R::where_less(simd, distance, zero, one, zero));
            // Of two the second is taken where the first is not a number: those count as no gap here, and show elsewhere.
            gaps = R::plus(simd, gaps, R::smaller(simd, distance, zero));
            if R::any_above(simd, distance, wide_floor) {
                // A branch for each lane would cost more than all the rest.
                let mut bits = R::bits_above(simd, distance, wide_floor);
                let start = ((run << 16 | place) * lanes) as u32;
                while bits != 0 {
                    places[all.found] = start + bits.trailing_zeros();
                    all.found += 1;
                    bits &= bits - 1;
                }
            }
        }
        all.below += R::total(simd, counts).wide() as usize;
        all.gap = all.gap - R::total(simd, gaps);
    }
    let whole = numbers.len() - end.len();
    for (place, number) in end.iter().enumerate() {
        let distance = *number + shift - threshold;
        places[all.found] = (whole + place) as u32;
        all.found += usize::from(distance > -reach);
        if distance < R::default() {
            all.below += 1;
            all.gap += -distance;
        }
    }
    all
}
