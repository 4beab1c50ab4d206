//! Every function on every vector unit against what is written out.

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
    (got.dot.wide(), list(&got.multiple), list(&got.sum), &got.listed) == (want.dot, want.multiple.clone(), want.sum.clone(), &want.listed)
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
