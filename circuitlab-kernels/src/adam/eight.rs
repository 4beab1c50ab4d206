//! Moments in 8 bits: 2.03 bytes a parameter in place of 8.
//!
//! Every 256 numbers of a row share two scales, and the rest of a row two more: what a row becomes does not depend on who has the others. The first moment is `s (q / 127)^3` with `q` from -127 to 127, the root of the
//! second `s (q / 255)^3` with `q` from 0 to 255, so that levels lie denser where numbers are smaller.
//!
//! A step changes a second moment by a thousandth, which is far less than the distance of two levels: rounded to the nearest it would
//! never fall, rounded up it would grow to the largest square that was ever seen. So each number becomes one of the two levels beside
//! it by chance, with the odds that keep its mean; chance is a hash of step and place, and a run that is resumed draws the same,
//! with however many ranks. What is
//! not zero is no less than level 2: as small as the least first moment, so that no quotient of the two can run away.

use circuitlab_core::{Error, Result};
use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Factors, Step};
use crate::real::Real;
use crate::threads::pool;

/// Numbers that share a scale.
pub const SHARED: usize = 256;

/// Blocks that a thread steps at a time.
const BLOCKS: usize = 64;

/// The largest integers.
const FIRST: f32 = 127.0;
const SECOND: f32 = 255.0;

/// The least level of a second moment that is not zero.
const LEAST_SECOND: f32 = 2.0;

/// Rows of a parameter and what Adam keeps of them in 8 bits; each row has as many scales as [`SHARED`] numbers of it begin.
#[derive(Debug)]
pub struct Numbers<'a> {
    /// How many numbers a row has.
    pub width: usize,
    /// The place of the first number in the whole parameter, of which these rows may be a part.
    pub place: u64,
    /// The parameter.
    pub value: &'a mut [f32],
    /// Its copy in 16 bits, which is written anew.
    pub rounded: Option<&'a mut [bf16]>,
    /// First moment.
    pub first: &'a mut [i8],
    /// Its scales.
    pub first_scales: &'a mut [f32],
    /// Second moment.
    pub second: &'a mut [u8],
    /// Its scales, of roots.
    pub second_scales: &'a mut [f32],
    /// Gradient.
    pub gradient: &'a [f32],
}

/// Step number `t` of all numbers. Where the gradients of a block are zero, and its moments are so still, it is not touched.
///
/// # Errors
/// Lengths that do not fit together, and a system that gives no threads.
pub fn step_in_8_bits(step: &Step, t: u64, numbers: Numbers<'_>) -> Result<()> {
    numbers.check()?;
    let factors = Factors::new(step);
    let blocks = numbers.blocks();
    let salt = mix(t as u32 ^ mix((t >> 32) as u32));
    pool()?.install(|| {
        blocks.into_par_iter().for_each(|numbers| {
            let salt = salt.wrapping_add(numbers.place as u32);
            Arch::new().dispatch(StepNumbers { numbers, factors: &factors, salt });
        });
    });
    Ok(())
}

/// [`Numbers::step`] for a vector unit. A closure in its place is not compiled for it, unless it is short.
struct StepNumbers<'a, 'b> {
    numbers: Numbers<'a>,
    factors: &'b Factors<f32>,
    salt: u32,
}

impl WithSimd for StepNumbers<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.numbers.step(self.factors, self.salt);
    }
}

/// What a first moment of one row stands for: `numbers` of [`SHARED`] to a scale.
pub fn first_of(numbers: &[i8], scales: &[f32]) -> Vec<f32> {
    let shared = numbers.chunks(SHARED).zip(scales);
    shared.flat_map(|(numbers, scale)| numbers.iter().map(move |number| scale * cube(f32::from(*number) / FIRST))).collect()
}

/// What a second moment of one row stands for.
pub fn second_of(numbers: &[u8], scales: &[f32]) -> Vec<f32> {
    let shared = numbers.chunks(SHARED).zip(scales);
    let square = |root: f32| root * root;
    shared.flat_map(|(numbers, scale)| numbers.iter().map(move |number| square(scale * cube(f32::from(*number) / SECOND)))).collect()
}

impl Numbers<'_> {
    fn check(&self) -> Result<()> {
        let length = self.value.len();
        let scales = [self.first_scales.len(), self.second_scales.len()];
        let fits = [self.first.len(), self.second.len(), self.gradient.len()].iter().all(|other| *other == length)
            && self.rounded.as_ref().is_none_or(|rounded| rounded.len() == length)
            && self.width > 0
            && length.is_multiple_of(self.width)
            && scales == [length / self.width * self.row_scales(); 2];
        if fits {
            return Ok(());
        }
        Err(Error::Invalid(format!("Adam in 8 bits: {length} numbers with moments, gradient or scales ({scales:?}) of other lengths")))
    }

    fn row_scales(&self) -> usize {
        self.width.div_ceil(SHARED)
    }

    fn blocks(self) -> Vec<Self> {
        let width = self.width;
        let rows = (BLOCKS * SHARED / width).max(1);
        let (length, scales) = (rows * width, rows * self.row_scales());
        let places = (self.place..).step_by(length);
        let mut rounded = self.rounded.map(|rounded| rounded.chunks_mut(length));
        let values = places.zip(self.value.chunks_mut(length)).zip(self.gradient.chunks(length));
        let firsts = self.first.chunks_mut(length).zip(self.first_scales.chunks_mut(scales));
        let seconds = self.second.chunks_mut(length).zip(self.second_scales.chunks_mut(scales));
        let blocks =
            values.zip(firsts.zip(seconds)).map(|(((place, value), gradient), ((first, first_scales), (second, second_scales)))| Self {
                width,
                place,
                value,
                rounded: rounded.as_mut().and_then(Iterator::next),
                first,
                first_scales,
                second,
                second_scales,
                gradient,
            });
        blocks.collect()
    }

    #[inline(always)]
    fn step(mut self, factors: &Factors<f32>, salt: u32) {
        let (width, row_scales) = (self.width, self.row_scales());
        let scales = self.first_scales.iter_mut().zip(&mut *self.second_scales);
        for (block, (first_scale, second_scale)) in scales.enumerate() {
            let row = block / row_scales * width;
            let begin = row + block % row_scales * SHARED;
            let place = begin..(begin + SHARED).min(row + width);
            let gradient = &self.gradient[place.clone()];
            if *first_scale == 0.0 && *second_scale == 0.0 && gradient.iter().all(|number| *number == 0.0) {
                continue;
            }
            // Of a row's last block that is not full the rest stays zero.
            let (mut m, mut v) = ([0.0_f32; SHARED], [0.0_f32; SHARED]);
            let (first, second) = (&mut self.first[place.clone()], &mut self.second[place.clone()]);
            for (m, first) in m.iter_mut().zip(&*first) {
                *m = *first_scale * cube(f32::from(*first) * (1.0 / FIRST));
            }
            for (v, second) in v.iter_mut().zip(&*second) {
                let root = *second_scale * cube(f32::from(*second) * (1.0 / SECOND));
                *v = root * root;
            }
            let value = &mut self.value[place.clone()];
            factors.update(value, &mut m, &mut v, gradient);
            if let Some(rounded) = &mut self.rounded {
                Real::round(value, &mut rounded[place]);
            }
            *first_scale = flushed(largest(&m));
            *second_scale = largest(&v).sqrt();
            encode(&mut m, &mut v, [*first_scale, *second_scale], salt.wrapping_add(begin as u32));
            // The low bits of a float of this size are the integer, negative ones included.
            for (first, level) in first.iter_mut().zip(&m) {
                *first = (level + 12_582_912.0).to_bits() as i8;
            }
            for (second, level) in second.iter_mut().zip(&v) {
                *second = (level + 12_582_912.0).to_bits() as u8;
            }
        }
    }
}

/// Puts levels in place of moments. Whole blocks, and one kind of number, so that it is done to many at once.
#[inline(always)]
fn encode(m: &mut [f32; SHARED], v: &mut [f32; SHARED], [first_scale, second_scale]: [f32; 2], salt: u32) {
    let per = |scale: f32| if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (per_first, per_second) = (per(first_scale), per(second_scale));
    let mut places = [0_u32; SHARED];
    for (at, place) in (0_u32..).zip(&mut places) {
        *place = mix(salt.wrapping_add(at));
    }
    for (m, chance) in m.iter_mut().zip(&places) {
        let level = chosen(m.abs() * per_first, FIRST, |level| level, chance >> 16);
        *m = level.copysign(*m);
    }
    for (v, chance) in v.iter_mut().zip(&places) {
        let level = chosen(v.sqrt() * per_second, SECOND, |root| root * root, chance & 0xffff);
        let least = if *v > 0.0 { LEAST_SECOND } else { 0.0 };
        *v = if level > least { level } else { least };
    }
}

/// One of the two levels beside `x`, from 0 to 1, so that the mean of `of(x)` is kept; `chance` is a number below 65536.
#[inline(always)]
fn chosen(x: f32, most: f32, of: impl Fn(f32) -> f32, chance: u32) -> f32 {
    let below = (most * cube_root(x)).floor();
    let below = if below < most { below } else { most - 1.0 };
    let low = of(cube(below * (1.0 / most)));
    let high = of(cube((below + 1.0) * (1.0 / most)));
    // A number of 16 bits is the same with a sign, and signed ones have an instruction of their own.
    let chance = (chance as i32 as f32 + 0.5) * (1.0 / 65536.0);
    below + if chance * (high - low) < of(x) - low { 1.0 } else { 0.0 }
}

#[inline(always)]
fn cube(x: f32) -> f32 {
    x * x * x
}

/// The cube root of a number from 0 to 1, to six digits: a third of the exponent, and twice Newton's method.
#[inline(always)]
fn cube_root(x: f32) -> f32 {
    let mut root = f32::from_bits((x.to_bits() / 3).wrapping_add(0x2a51_06a5));
    for _ in 0..2 {
        root = (root + root + x / (root * root)) * (1.0 / 3.0);
    }
    root
}

/// A scale that can be divided by.
#[inline(always)]
fn flushed(scale: f32) -> f32 {
    if scale < f32::MIN_POSITIVE { 0.0 } else { scale }
}

/// The largest size. Over lanes, so that it can be had at once of several numbers.
#[inline(always)]
fn largest(numbers: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (whole, rest) = numbers.as_chunks::<16>();
    for numbers in whole {
        for (lane, number) in lanes.iter_mut().zip(numbers) {
            *lane = if number.abs() > *lane { number.abs() } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(0.0, |most: f32, number| most.max(number.abs()))
}

/// A hash of 32 bits (Wellons' `lowbias32`).
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

#[cfg(test)]
mod tests {
    use circuitlab_core::random::Stream;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct State {
        value: Vec<f32>,
        first: Vec<i8>,
        first_scales: Vec<f32>,
        second: Vec<u8>,
        second_scales: Vec<f32>,
    }

    impl State {
        fn new(count: usize) -> Self {
            Self::of_rows(1, count)
        }

        fn of_rows(rows: usize, width: usize) -> Self {
            let count = rows * width;
            let scales = vec![0.0; rows * width.div_ceil(SHARED)];
            Self {
                value: vec![0.0; count],
                first: vec![0; count],
                first_scales: scales.clone(),
                second: vec![0; count],
                second_scales: scales,
            }
        }

        fn step(&mut self, by: &Step, t: u64, gradient: &[f32]) {
            self.step_rows(by, t, gradient, gradient.len(), 0);
        }

        fn step_rows(&mut self, by: &Step, t: u64, gradient: &[f32], width: usize, place: u64) {
            let Self { value, first, first_scales, second, second_scales } = self;
            let numbers = Numbers { width, place, value, rounded: None, first, first_scales, second, second_scales, gradient };
            step_in_8_bits(by, t, numbers).expect("fits");
        }

        fn moments(&self) -> [Vec<f32>; 2] {
            [first_of(&self.first, &self.first_scales), second_of(&self.second, &self.second_scales)]
        }
    }

    /// Numbers of sizes from 1 to `10^-digits`.
    fn gradient(count: usize, digits: f64, seed: u64) -> Vec<f32> {
        let mut stream = Stream::new(seed, "gradient", 0);
        (0..count).map(|_| ((stream.uniform() - 0.5).signum() * 10_f64.powf(-digits * stream.uniform())) as f32).collect()
    }

    fn at(t: u64) -> Step {
        Step::new(t, 1e-3, 0.9, 0.999, 1e-8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn a_number_becomes_one_of_the_levels_beside_it(count in 1_usize..700, digits in 0.0_f64..8.0, seed: u64) {
            let gradient = gradient(count, digits, seed);
            let mut state = State::new(count);
            state.step(&at(1), 1, &gradient);
            let [first, second] = state.moments();
            for (place, gradient) in gradient.iter().enumerate() {
                let block = place / SHARED;
                let (m, v) = (0.1 * gradient, 0.001 * gradient * gradient);
                // The distance of two levels about `x`, in scales: 3 x^(2/3) / most, and a whole step at the bottom.
                let step = |x: f32, most: f32| 3.1 / most * (x.cbrt() + 1.0 / most).powi(2);
                let scale = state.first_scales[block];
                prop_assert!((first[place] - m).abs() <= scale * step(m.abs() / scale, FIRST), "{} is not {m}", first[place]);
                let (scale, root) = (state.second_scales[block], v.sqrt());
                let got = second[place].sqrt();
                let least = scale * cube(LEAST_SECOND / SECOND);
                prop_assert!((got - root).abs() <= scale * step(root / scale, SECOND) + least, "{got} is not {root}");
                prop_assert!(second[place] > 0.0 && got >= 0.999 * least, "a second moment that is not zero is never kept as zero");
            }
        }

        #[test]
        fn chance_is_the_steps_and_the_places(count in 1_usize..40_000, seed: u64) {
            let gradient = gradient(count, 3.0, seed);
            let (mut whole, mut again) = (State::new(count), State::new(count));
            whole.step(&at(1), 1, &gradient);
            again.step(&at(1), 1, &gradient);
            prop_assert!(whole == again);
            again.step(&at(2), 2, &gradient);
            whole.step(&at(2), 3, &gradient);
            prop_assert!(count < 100 || whole != again, "another step has another chance");
        }
    }

    #[test]
    fn rows_are_stepped_alike_whoever_has_the_others() {
        for width in [1, 100, SHARED, 700, 40_000] {
            let (rows, scales) = (7, width.div_ceil(SHARED));
            let mut whole = State::of_rows(rows, width);
            let mut parts = [State::of_rows(2, width), State::of_rows(5, width)];
            for t in 1..=3 {
                let gradient = gradient(rows * width, 3.0, t);
                whole.step_rows(&at(t), t, &gradient, width, 0);
                parts[0].step_rows(&at(t), t, &gradient[..2 * width], width, 0);
                parts[1].step_rows(&at(t), t, &gradient[2 * width..], width, 2 * width as u64);
            }
            assert_eq!(whole.first_scales.len(), rows * scales);
            let [one, other] = parts;
            let joined = State {
                value: [one.value, other.value].concat(),
                first: [one.first, other.first].concat(),
                first_scales: [one.first_scales, other.first_scales].concat(),
                second: [one.second, other.second].concat(),
                second_scales: [one.second_scales, other.second_scales].concat(),
            };
            assert!(whole == joined, "rows of {width}");
        }
    }

    #[test]
    fn cube_roots_are_near_enough() {
        for number in 0..=100_000_u32 {
            let x = number as f32 / 1e5;
            assert!((cube_root(x) - x.cbrt()).abs() <= 4e-6 * x.cbrt() + 1e-6, "{x}: {}", cube_root(x));
        }
    }

    /// The mean of the second moments of equal gradients, kept up by one large number in their block.
    fn mean_second(steps: u64, small: impl Fn(u64) -> f32) -> f64 {
        let mut state = State::new(SHARED);
        for t in 1..=steps {
            let mut gradient = vec![small(t); SHARED];
            gradient[0] = 10.0;
            state.step(&at(t), t, &gradient);
        }
        let [_, second] = state.moments();
        second[1..].iter().map(|v| f64::from(*v)).sum::<f64>() / (SHARED - 1) as f64
    }

    #[test]
    fn second_moments_rise_and_fall_on_average_as_they_should() {
        let risen = mean_second(1000, |_| 0.3);
        let want = 0.09 * (1.0 - 0.999_f64.powi(1000));
        assert!((risen / want - 1.0).abs() < 0.05, "{risen}, expected {want}");
        let fallen = mean_second(2000, |t| if t <= 1000 { 0.3 } else { 0.0 });
        let want = want * 0.999_f64.powi(1000);
        assert!((fallen / want - 1.0).abs() < 0.08, "{fallen}, expected {want}");
    }

    #[test]
    fn first_moments_without_gradient_end_at_zero() {
        let mut state = State::new(SHARED);
        for t in 1..=300 {
            let mut gradient = vec![if t == 1 { 0.5 } else { 0.0 }; SHARED];
            gradient[0] = 1.0;
            state.step(&at(t), t, &gradient);
        }
        let [first, _] = state.moments();
        assert!(first[1..].iter().all(|m| *m == 0.0), "{:?}", &first[..9]);
    }

    #[test]
    fn a_block_is_not_touched_before_its_first_gradient() {
        let mut state = State::new(2 * SHARED);
        let mut gradient = vec![0.0; 2 * SHARED];
        gradient[300] = 1.0;
        state.step(&at(1), 1, &gradient);
        assert!(state.first_scales[0] <= 0.0);
        assert!(state.first_scales[1] > 0.0 && state.value[300] < 0.0 && state.value[..SHARED].iter().all(|value| *value == 0.0));
        let short = Numbers {
            width: 3,
            place: 0,
            value: &mut [0.0; 3],
            rounded: None,
            first: &mut [0; 3],
            first_scales: &mut [],
            second: &mut [0; 3],
            second_scales: &mut [0.0],
            gradient: &[0.0; 3],
        };
        assert!(step_in_8_bits(&at(1), 1, short).is_err());
    }
}
