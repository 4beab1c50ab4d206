//! Sums and products of contiguous rows.
//!
//! Each function is compiled into its caller, which is a [`pulp::WithSimd`] operation: the vector unit is chosen once for a whole
//! loop over rows. All of them fuse multiplications with additions, and sum in an order that depends on the vector unit alone.

mod memory;
mod rate;
mod scan;
mod squares;
#[cfg(test)]
mod tests;

use pulp::Simd;

use crate::real::Real;

pub use memory::{prefetch, prefetch_after, write_past_caches, written};
pub use rate::flop_per_s;
pub use scan::{Scan, scan};
pub use squares::{AT_A_TIME, Square, squares_of_rows};

/// Vectors that one accumulation keeps in registers at a time.
const STRIP: usize = 8;

/// Rows that are worked on together, so that what they have in common is read once.
pub const GROUP: usize = 4;

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

/// `out[i] += sum a * row(places[i])`, where `rows` holds rows as long as `a`. The sums are those of [`dot`], bit for bit.
#[inline(always)]
pub fn add_dots<S: Simd, R: Real>(simd: S, out: &mut [R], a: &[R], places: &[u32], rows: &[R]) {
    let width = a.len();
    let row = |place: u32| &rows[place as usize * width..][..width];
    let ((groups, single), (outs, out_single)) = (places.as_chunks::<GROUP>(), out.as_chunks_mut::<GROUP>());
    for (places, outs) in groups.iter().zip(outs) {
        let found = dots(simd, a, places.map(row));
        outs.iter_mut().zip(found).for_each(|(out, found)| *out += found);
    }
    for (place, out) in single.iter().zip(out_single) {
        *out += dot(simd, a, row(*place));
    }
}

/// [`dot`] with several rows, for which each vector of `a` is read once.
#[inline(always)]
fn dots<S: Simd, R: Real>(simd: S, a: &[R], rows: [&[R]; GROUP]) -> [R; GROUP] {
    let (vectors, end) = R::lanes::<S>(a);
    let (fours, ones) = vectors.as_chunks::<4>();
    let split = rows.map(|row| R::lanes::<S>(row));
    let mut sums = [[R::splat(simd, R::default()); 4]; GROUP];
    for (place, four) in fours.iter().enumerate() {
        for (sums, (row, _)) in sums.iter_mut().zip(&split) {
            let Some(row) = row[place * 4..].first_chunk::<4>() else { continue };
            for ((sum, a), b) in sums.iter_mut().zip(four).zip(row) {
                *sum = R::fused(simd, *a, *b, *sum);
            }
        }
    }
    for (place, one) in ones.iter().enumerate() {
        for (sums, (row, _)) in sums.iter_mut().zip(&split) {
            sums[0] = R::fused(simd, *one, row[fours.len() * 4 + place], sums[0]);
        }
    }
    let mut found = [R::default(); GROUP];
    for ((found, sums), (_, row_end)) in found.iter_mut().zip(sums).zip(split) {
        let pairs = [R::plus(simd, sums[0], sums[1]), R::plus(simd, sums[2], sums[3])];
        let vectors = R::total(simd, R::plus(simd, pairs[0], pairs[1]));
        *found = end.iter().zip(row_end).fold(vectors, |sum, (a, b)| a.mul_add(*b, sum));
    }
    found
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

/// `sum a * (sign * sum over i of row(places[i]) + start)`, where `rows` holds rows as long as `a`: a dot product with a sum of rows that is
/// nowhere written down.
#[inline(always)]
pub fn dot_with_sum<S: Simd, R: Real>(simd: S, a: &[R], start: Option<&[R]>, sign: R, places: &[u32], rows: &[R]) -> R {
    let width = a.len();
    let lanes = R::lane_count::<S>();
    let (mut sums, mut from) = ([R::splat(simd, R::default()); STRIP], 0);
    while width - from >= STRIP * lanes {
        sums = summed::<S, R, STRIP>(simd, sums, a, start, sign, places, rows, from);
        from += STRIP * lanes;
    }
    let mut last = [sums[0]];
    while width - from >= lanes {
        last = summed::<S, R, 1>(simd, last, a, start, sign, places, rows, from);
        from += lanes;
    }
    let vectors = sums[1..].iter().fold(last[0], |sum, other| R::plus(simd, sum, *other));
    (from..width).fold(R::total(simd, vectors), |sum, column| {
        let first = start.map_or(R::default(), |start| start[column]);
        let row = places.iter().fold(first, |row, place| sign.mul_add(rows[*place as usize * width + column], row));
        a[column].mul_add(row, sum)
    })
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "it is the inner part of one loop")]
fn summed<S: Simd, R: Real, const N: usize>(
    simd: S,
    sums: [R::Lanes<S>; N],
    a: &[R],
    start: Option<&[R]>,
    sign: R,
    places: &[u32],
    rows: &[R],
    from: usize,
) -> [R::Lanes<S>; N] {
    let (width, length) = (a.len(), N * R::lane_count::<S>());
    let piece = |row: &[R]| R::lanes::<S>(&row[from..from + length]).0.first_chunk::<N>().copied();
    let zeros = [R::splat(simd, R::default()); N];
    let mut row_sums = start.and_then(piece).unwrap_or(zeros);
    let sign = R::splat(simd, sign);
    for place in places {
        let Some(row) = R::lanes::<S>(&rows[*place as usize * width + from..][..length]).0.first_chunk::<N>() else { return sums };
        for (sum, row) in row_sums.iter_mut().zip(row) {
            *sum = R::fused(simd, sign, *row, *sum);
        }
    }
    let mut found = sums;
    for ((found, a), row) in found.iter_mut().zip(piece(a).unwrap_or(zeros)).zip(row_sums) {
        *found = R::fused(simd, a, row, *found);
    }
    found
}

/// `outs[i] += sum over j of factors[i][j] * row j`, where row j begins at `j * stride` in `rows`: what [`add_rows`] does with all rows,
/// bit for bit where the factors of those that it leaves out are zero, and faster where few are.
#[inline(always)]
pub fn add_all_rows<S: Simd, R: Real>(simd: S, mut outs: [&mut [R]; GROUP], factors: [&[R]; GROUP], rows: &[R], stride: usize) {
    let width = outs[0].len();
    let lanes = R::lane_count::<S>();
    let mut from = 0;
    while width - from >= GROUP * lanes {
        strips::<S, R, GROUP>(simd, &mut outs, factors, rows, stride, from);
        from += GROUP * lanes;
    }
    while width - from >= lanes {
        strips::<S, R, 1>(simd, &mut outs, factors, rows, stride, from);
        from += lanes;
    }
    for (out, factors) in outs.into_iter().zip(factors) {
        for (column, out) in out.iter_mut().enumerate().skip(from) {
            *out = factors.iter().enumerate().fold(*out, |sum, (row, factor)| factor.mul_add(rows[row * stride + column], sum));
        }
    }
}

#[inline(always)]
fn strips<S: Simd, R: Real, const N: usize>(
    simd: S,
    outs: &mut [&mut [R]; GROUP],
    factors: [&[R]; GROUP],
    rows: &[R],
    stride: usize,
    from: usize,
) {
    let length = N * R::lane_count::<S>();
    let mut sums = [[R::splat(simd, R::default()); N]; GROUP];
    for (sums, out) in sums.iter_mut().zip(outs.iter()) {
        let Some(out) = R::lanes::<S>(&out[from..from + length]).0.first_chunk::<N>() else { return };
        *sums = *out;
    }
    let [first, second, third, fourth] = factors;
    for (row, (((first, second), third), fourth)) in first.iter().zip(second).zip(third).zip(fourth).enumerate() {
        let Some(row) = R::lanes::<S>(&rows[row * stride + from..][..length]).0.first_chunk::<N>() else { return };
        for (sums, factor) in sums.iter_mut().zip([first, second, third, fourth]) {
            let factor = R::splat(simd, *factor);
            for (sum, row) in sums.iter_mut().zip(row) {
                *sum = R::fused(simd, factor, *row, *sum);
            }
        }
    }
    for (sums, out) in sums.iter().zip(outs.iter_mut()) {
        let Some(out) = R::lanes_mut::<S>(&mut out[from..from + length]).0.first_chunk_mut::<N>() else { return };
        *out = *sums;
    }
}
