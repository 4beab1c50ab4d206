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
    let mut list = |numbers: &[R], first: usize, found: &mut usize| {
        for (place, number) in numbers.iter().enumerate() {
            places[*found] = (first + place) as u32;
            *found += usize::from(*number + shift - threshold > -reach);
        }
    };
    // Counted in lanes of the same type, which hold whole numbers of this size exactly.
    for (run, run_vectors) in vectors.chunks(1 << 16).enumerate() {
        let (mut counts, mut gaps) = (zero, zero);
        for (place, vector) in run_vectors.iter().enumerate() {
            let distance = R::minus(simd, R::plus(simd, *vector, wide_shift), wide_threshold);
            counts = R::plus(simd, counts, R::where_less(simd, distance, zero, one, zero));
            // Of two the second is taken where the first is not a number: those count as no gap here, and show elsewhere.
            gaps = R::plus(simd, gaps, R::larger(simd, R::minus(simd, zero, distance), zero));
            if R::any_above(simd, distance, wide_floor) {
                let start = (run << 16 | place) * lanes;
                list(&numbers[start..start + lanes], start, &mut all.found);
            }
        }
        all.below += R::total(simd, counts).wide() as usize;
        all.gap += R::total(simd, gaps);
    }
    let whole = numbers.len() - end.len();
    list(end, whole, &mut all.found);
    for number in end {
        let distance = *number + shift - threshold;
        if distance < R::default() {
            all.below += 1;
            all.gap += -distance;
        }
    }
    all
}
