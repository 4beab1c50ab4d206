//! Sums and products of contiguous rows.
//!
//! Each function is compiled into its caller, which is a [`pulp::WithSimd`] operation: the vector unit is chosen once for a whole
//! loop over rows. All of them fuse multiplications with additions, and sum in an order that depends on the vector unit alone.

use pulp::Simd;

use crate::real::Real;

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

/// Writes a row past the caches, where the machine can: memory that is next read after much else has gone through them need not be
/// read before it is written. [`written`] must be called on the same thread before another thread reads it.
#[inline(always)]
pub fn write_past_caches<R: Real>(to: &mut [R], from: &[R]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        const BYTES: usize = size_of::<__m128i>();
        let bytes = size_of_val(to);
        if bytes.is_multiple_of(BYTES) && to.as_ptr().addr().is_multiple_of(BYTES) && to.len() == from.len() {
            let (to, from) = (to.as_mut_ptr().cast::<__m128i>(), from.as_ptr().cast::<__m128i>());
            for place in 0..bytes / BYTES {
                #[allow(unsafe_code, reason = "stores past the caches have no safe form")]
                // SAFETY: both rows are borrowed and as long as each other, a whole number of 16 bytes of plain numbers; the first is
                // aligned to 16 bytes, the second need not be. The instructions are part of every x86-64 processor.
                unsafe {
                    _mm_stream_si128(to.add(place), _mm_loadu_si128(from.add(place)));
                }
            }
            return;
        }
    }
    to.copy_from_slice(from);
}

/// Ends what [`write_past_caches`] began: other threads see all of it from here on.
#[inline(always)]
pub fn written() {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "a fence for such stores has no safe form")]
    // SAFETY: it orders stores and does nothing else; every x86-64 processor has it.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pulp::{Arch, WithSimd};

    use super::*;

    /// Every function of this module on the same numbers.
    #[derive(Debug, Clone)]
    struct Case {
        /// Rows of `width` numbers.
        rows: Vec<f64>,
        width: usize,
        places: Vec<u32>,
        factors: Vec<f64>,
        start: Vec<f64>,
        threshold: f64,
        reach: f64,
    }

    #[derive(Debug)]
    struct Found<R> {
        dot: R,
        dots: Vec<R>,
        with_sum: R,
        all: Vec<R>,
        multiple: Vec<R>,
        sum: Vec<R>,
        scan: Scan<R>,
        listed: Vec<u32>,
    }

    fn cases() -> impl Strategy<Value = Case> {
        // Quarters, so that numbers stand at the very threshold and sums in any order are exact.
        let quarter = || (-40_i32..40).prop_map(|number| f64::from(number) / 4.0);
        (1_usize..300, 1_usize..9).prop_flat_map(move |(width, rows)| {
            (
                proptest::collection::vec(quarter(), width * rows),
                proptest::collection::vec((0..rows as u32, quarter()), 0..12),
                proptest::collection::vec(quarter(), width),
                quarter(),
                (0_i32..12).prop_map(|number| f64::from(number) / 4.0),
            )
                .prop_map(move |(rows, entries, start, threshold, reach)| {
                    let (places, factors) = entries.into_iter().unzip();
                    Case { rows, width, places, factors, start, threshold, reach }
                })
        })
    }

    struct Run<R>(Case, std::marker::PhantomData<R>);

    impl<R: Real> WithSimd for Run<R> {
        type Output = Found<R>;

        fn with_simd<S: Simd>(self, simd: S) -> Found<R> {
            let list = |numbers: &[f64]| numbers.iter().map(|number| R::of(*number)).collect::<Vec<R>>();
            let case = self.0;
            let (rows, start) = (list(&case.rows), list(&case.start));
            let first = &rows[..case.width];
            let (mut multiple, mut sum) = (start.clone(), start.clone());
            add_multiple(simd, &mut multiple, R::of(case.threshold), first);
            add_rows(simd, &mut sum, &list(&case.factors), &case.places, &rows);
            let mut dots = vec![R::of(0.5); case.places.len()];
            add_dots(simd, &mut dots, &start, &case.places, &rows);
            let with_sum = dot_with_sum(simd, &start, Some(first), R::of(-1.0), &case.places, &rows)
                + dot_with_sum(simd, &start, None, R::of(1.0), &case.places[..case.places.len() / 2], &rows);
            let mut all: [Vec<R>; GROUP] = std::array::from_fn(|_| start.clone());
            let factors: Vec<R> = (0..rows.len() / case.width).map(|row| R::of(row as f64 - 1.5)).collect();
            let [one, two, three, four] = &mut all;
            add_all_rows(simd, [one, two, three, four], [&factors; GROUP], &rows, case.width);
            assert!(all.iter().all(|out| *out == all[0]), "each of a group has the same factors here");
            let all = all[0].clone();
            let mut places = vec![0; case.width + 1];
            let scan = scan(simd, first, R::of(0.25), R::of(case.threshold), R::of(case.reach), &mut places);
            prefetch(first);
            let mut copy = vec![R::default(); first.len() + 1];
            for shift in 0..2 {
                write_past_caches(&mut copy[shift..shift + first.len()], first);
                written();
                assert_eq!(&copy[shift..shift + first.len()], first);
            }
            Found { dot: dot(simd, first, &start), dots, with_sum, all, multiple, sum, scan, listed: places[..scan.found].to_vec() }
        }
    }

    /// The same, written out.
    fn plainly(case: &Case) -> Found<f64> {
        let first = &case.rows[..case.width];
        let row = |place: u32| &case.rows[place as usize * case.width..];
        let sum_of = |column: usize| case.factors.iter().zip(&case.places).map(|(factor, place)| factor * row(*place)[column]).sum::<f64>();
        let all_of = |column: usize| {
            (0..case.rows.len() / case.width).map(|place| (place as f64 - 1.5) * case.rows[place * case.width + column]).sum::<f64>()
        };
        let signed = |column: usize| {
            let sum = |places: &[u32]| places.iter().map(|place| row(*place)[column]).sum::<f64>();
            first[column] - sum(&case.places) + sum(&case.places[..case.places.len() / 2])
        };
        let distances: Vec<f64> = first.iter().map(|number| number + 0.25 - case.threshold).collect();
        let below: Vec<f64> = distances.iter().copied().filter(|distance| *distance < 0.0).collect();
        let listed: Vec<u32> = (0..).zip(&distances).filter(|(_, distance)| **distance > -case.reach).map(|(place, _)| place).collect();
        Found {
            dot: first.iter().zip(&case.start).map(|(a, b)| a * b).sum(),
            with_sum: case.start.iter().enumerate().map(|(column, start)| start * signed(column)).sum(),
            dots: case.places.iter().map(|place| 0.5 + row(*place).iter().zip(&case.start).map(|(a, b)| a * b).sum::<f64>()).collect(),
            all: case.start.iter().enumerate().map(|(column, start)| start + all_of(column)).collect(),
            multiple: case.start.iter().zip(first).map(|(start, number)| start + case.threshold * number).collect(),
            sum: case.start.iter().enumerate().map(|(column, start)| start + sum_of(column)).collect(),
            scan: Scan { below: below.len(), gap: -below.iter().sum::<f64>(), found: listed.len() },
            listed,
        }
    }

    fn same<R: Real>(got: &Found<R>, want: &Found<f64>) -> bool {
        let list = |numbers: &[R]| numbers.iter().map(|number| number.wide()).collect::<Vec<_>>();
        let Scan { below, gap, found } = got.scan;
        (got.dot.wide(), list(&got.multiple), list(&got.sum), &got.listed)
            == (want.dot, want.multiple.clone(), want.sum.clone(), &want.listed)
            && (list(&got.dots), list(&got.all), got.with_sum.wide()) == (want.dots.clone(), want.all.clone(), want.with_sum)
            && (below, gap.wide(), found) == (want.scan.below, want.scan.gap, want.scan.found)
    }

    proptest! {
        #[test]
        fn every_vector_unit_gives_what_is_written_out(case in cases()) {
            let want = plainly(&case);
            let short = || Run::<f32>(case.clone(), std::marker::PhantomData);
            let long = || Run::<f64>(case.clone(), std::marker::PhantomData);
            prop_assert!(same(&Arch::new().dispatch(short()), &want) && same(&Arch::new().dispatch(long()), &want));
            prop_assert!(same(&short().with_simd(pulp::Scalar), &want) && same(&long().with_simd(pulp::Scalar), &want));
            #[cfg(target_arch = "x86_64")]
            if let Some(avx2) = pulp::x86::V3::try_new() {
                prop_assert!(same(&pulp::Simd::vectorize(avx2, short()), &want) && same(&pulp::Simd::vectorize(avx2, long()), &want));
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_neither_below_nor_listed() {
        struct Scanned;
        impl WithSimd for Scanned {
            type Output = Scan<f32>;
            fn with_simd<S: Simd>(self, simd: S) -> Scan<f32> {
                let mut numbers = [1.0_f32; 40];
                (numbers[3], numbers[38]) = (f32::NAN, f32::NAN);
                scan(simd, &numbers, 0.0, 2.0, 0.5, &mut [0; 41])
            }
        }
        assert_eq!(Arch::new().dispatch(Scanned), Scan { below: 38, gap: 38.0, found: 0 });
    }
}
