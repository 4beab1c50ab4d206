//! Sums and products of contiguous rows.
//!
//! Each function is compiled into its caller, which is a [`pulp::WithSimd`] operation: the vector unit is chosen once for a whole
//! loop over rows. All of them fuse multiplications with additions, and sum in an order that depends on the vector unit alone.

use pulp::Simd;

use crate::real::Real;

/// Vectors that one accumulation keeps in registers at a time.
const STRIP: usize = 8;

/// `sum a b`.
#[inline(always)]
pub fn dot<S: Simd, R: Real>(simd: S, a: &[R], b: &[R]) -> R {
    let ((a, a_end), (b, b_end)) = (R::lanes::<S>(a), R::lanes::<S>(b));
    let ((a_four, a_one), (b_four, b_one)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [R::splat(simd, R::default()); 4];
    for (a, b) in a_four.iter().zip(b_four) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = R::fused(simd, *a, *b, *sum);
        }
    }
    for (a, b) in a_one.iter().zip(b_one) {
        sums[0] = R::fused(simd, *a, *b, sums[0]);
    }
    let pairs = [R::plus(simd, sums[0], sums[1]), R::plus(simd, sums[2], sums[3])];
    let vectors = R::total(simd, R::plus(simd, pairs[0], pairs[1]));
    a_end.iter().zip(b_end).fold(vectors, |sum, (a, b)| a.mul_add(*b, sum))
}

/// `y += factor x`.
#[inline(always)]
pub fn add_multiple<S: Simd, R: Real>(simd: S, y: &mut [R], factor: R, x: &[R]) {
    let ((y, y_end), (x, x_end)) = (R::lanes_mut::<S>(y), R::lanes::<S>(x));
    let wide = R::splat(simd, factor);
    for (y, x) in y.iter_mut().zip(x) {
        *y = R::fused(simd, wide, *x, *y);
    }
    for (y, x) in y_end.iter_mut().zip(x_end) {
        *y = factor.mul_add(*x, *y);
    }
}

/// `out += sum over i of factors[i] * row(places[i])`, where `rows` holds rows as long as `out`.
///
/// A strip of `out` stays in registers while all rows are added to it.
#[inline(always)]
pub fn add_rows<S: Simd, R: Real>(simd: S, out: &mut [R], factors: &[R], places: &[u32], rows: &[R]) {
    let width = out.len();
    let lanes = R::lane_count::<S>();
    let mut from = 0;
    while width - from >= STRIP * lanes {
        strip::<S, R, STRIP>(simd, &mut out[from..from + STRIP * lanes], factors, places, rows, width, from);
        from += STRIP * lanes;
    }
    while width - from >= lanes {
        strip::<S, R, 1>(simd, &mut out[from..from + lanes], factors, places, rows, width, from);
        from += lanes;
    }
    for (column, out) in out.iter_mut().enumerate().skip(from) {
        for (factor, place) in factors.iter().zip(places) {
            *out = factor.mul_add(rows[*place as usize * width + column], *out);
        }
    }
}

#[inline(always)]
fn strip<S: Simd, R: Real, const N: usize>(simd: S, out: &mut [R], factors: &[R], places: &[u32], rows: &[R], width: usize, from: usize) {
    let length = out.len();
    let Some(out) = R::lanes_mut::<S>(out).0.first_chunk_mut::<N>() else { return };
    let mut sums = *out;
    for (factor, place) in factors.iter().zip(places) {
        let row = &rows[*place as usize * width + from..][..length];
        let Some(row) = R::lanes::<S>(row).0.first_chunk::<N>() else { return };
        let factor = R::splat(simd, *factor);
        for (sum, row) in sums.iter_mut().zip(row) {
            *sum = R::fused(simd, factor, *row, *sum);
        }
    }
    *out = sums;
}

/// Counts the numbers that lie below `threshold` when `shift` is added to them, and sums up by how much.
#[inline(always)]
pub fn below<S: Simd, R: Real>(simd: S, numbers: &[R], shift: R, threshold: R) -> (usize, R) {
    let (vectors, end) = R::lanes::<S>(numbers);
    let [zero, one] = [0.0, 1.0].map(|number| R::splat(simd, R::of(number)));
    let [wide_shift, wide_threshold] = [shift, threshold].map(|number| R::splat(simd, number));
    let (mut count, mut gap) = (0, R::default());
    // Counted in lanes of the same type, which hold whole numbers of this size exactly.
    for vectors in vectors.chunks(1 << 16) {
        let (mut counts, mut gaps) = (zero, zero);
        for vector in vectors {
            let shifted = R::plus(simd, *vector, wide_shift);
            counts = R::plus(simd, counts, R::where_less(simd, shifted, wide_threshold, one, zero));
            // Of two the second is taken where the first is not a number: those count as no gap here, and show elsewhere.
            gaps = R::plus(simd, gaps, R::larger(simd, R::minus(simd, wide_threshold, shifted), zero));
        }
        count += R::total(simd, counts).wide() as usize;
        gap += R::total(simd, gaps);
    }
    for number in end {
        let shifted = *number + shift;
        count += usize::from(shifted < threshold);
        gap += if shifted < threshold { threshold - shifted } else { R::default() };
    }
    (count, gap)
}

/// Asks for a row before it is needed, where the machine can be asked.
#[inline(always)]
pub fn prefetch<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE_BYTES: usize = 64;
        let first = row.as_ptr().cast::<i8>();
        for offset in (0..size_of_val(row)).step_by(LINE_BYTES) {
            #[allow(unsafe_code, reason = "a hint to the processor has no safe form")]
            // SAFETY: the address lies within the borrowed row, and a hint reads nothing that the program could see.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(first.add(offset));
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}
