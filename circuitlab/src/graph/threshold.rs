//! The value down to which numbers make up a share of their sum, however many there are.

use crate::Result;

/// Numbers that are sorted in memory.
const SORTED: u64 = 1 << 20;
/// Bits of a number that choose its bucket: at first those of its exponent, and 7 of what follows.
const BITS: u32 = 18;

/// The number `x` of a list of numbers above 0 for which those of `x` and above make up `share` of the sum, and those above `x` do not.
/// `share` 1 gives 0, which is below all of them, and an empty list infinity.
pub(super) fn of_sorted(numbers: &mut [f64], share: f64) -> f64 {
    numbers.sort_unstable_by(|left, right| right.total_cmp(left));
    let sum: f64 = numbers.iter().sum();
    if share >= 1.0 { 0.0 } else { first_past(numbers, 0.0, share * sum) }
}

/// The first of descending numbers at which the sum, which begins with `above`, comes to `goal`; the last where rounding keeps it below.
fn first_past(numbers: &[f64], above: f64, goal: f64) -> f64 {
    let mut sum = above;
    let reached = |number: &&f64| {
        sum += **number;
        sum >= goal
    };
    numbers.iter().find(reached).or(numbers.last()).copied().unwrap_or(f64::INFINITY)
}

/// Positive numbers, counted and summed by leading bits, which order them as their values do.
pub(super) struct Histogram {
    /// The bits before those that choose a bucket, the same for all numbers that count.
    prefix: u64,
    /// How many bits choose a bucket.
    width: u32,
    /// How many bits come after them.
    shift: u32,
    counts: Vec<u64>,
    sums: Vec<f64>,
}

impl Histogram {
    /// Of all numbers. A sign of 0 is all that they have in common.
    pub(super) fn new() -> Self {
        Self::within(0, 63)
    }

    /// Of the numbers that have this prefix before their last `bits` bits.
    fn within(prefix: u64, bits: u32) -> Self {
        let width = bits.min(BITS);
        Self { prefix, width, shift: bits - width, counts: vec![0; 1 << width], sums: vec![0.0; 1 << width] }
    }

    /// Counts a number, unless it is 0 or of another prefix.
    pub(super) fn add(&mut self, number: f64) {
        let key = number.to_bits() >> self.shift;
        if number > 0.0 && key >> self.width == self.prefix {
            let bucket = (key & ((1 << self.width) - 1)) as usize;
            self.counts[bucket] += 1;
            self.sums[bucket] += number;
        }
    }

    /// The bucket in which the sum from the greatest numbers down, which begins with `above`, comes to `goal`, and the sum before it; the
    /// last one where rounding keeps it below, and none where there are no numbers.
    fn bucket(&self, above: f64, goal: f64) -> Option<(usize, f64)> {
        let mut sum = above;
        let mut last = None;
        for bucket in (0..self.counts.len()).rev().filter(|bucket| self.counts[*bucket] > 0) {
            last = Some((bucket, sum));
            sum += self.sums[bucket];
            if sum >= goal {
                break;
            }
        }
        last
    }

    /// As [`of_sorted`], of numbers that this has counted and that `scan` gives again, as often as need be. About once is enough, as a bucket
    /// of what numbers have in common holds few of them.
    pub(super) fn threshold(self, share: f64, mut scan: impl FnMut(&mut dyn FnMut(f64)) -> Result<()>) -> Result<f64> {
        if share >= 1.0 {
            return Ok(0.0);
        }
        let goal = share * self.sums.iter().rev().sum::<f64>();
        let (mut histogram, mut above) = (self, 0.0);
        loop {
            let Some((bucket, sum)) = histogram.bucket(above, goal) else { return Ok(f64::INFINITY) };
            above = sum;
            let (shift, count) = (histogram.shift, histogram.counts[bucket]);
            let prefix = histogram.prefix << histogram.width | bucket as u64;
            if shift == 0 {
                // All of the bucket are this number.
                return Ok(f64::from_bits(prefix));
            }
            if count > SORTED {
                histogram = Self::within(prefix, shift);
                scan(&mut |number| histogram.add(number))?;
                continue;
            }
            let mut numbers = Vec::with_capacity(count as usize);
            scan(&mut |number| {
                if number > 0.0 && number.to_bits() >> shift == prefix {
                    numbers.push(number);
                }
            })?;
            numbers.sort_unstable_by(|left, right| right.total_cmp(left));
            return Ok(first_past(&numbers, above, goal));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The threshold's bits, which say which number it is.
    fn streamed(numbers: &[f64], share: f64) -> u64 {
        let mut histogram = Histogram::new();
        for number in numbers {
            histogram.add(*number);
        }
        let scan = |give: &mut dyn FnMut(f64)| {
            for number in numbers {
                give(*number);
            }
            Ok(())
        };
        histogram.threshold(share, scan).expect("scans").to_bits()
    }

    #[test]
    fn what_is_there_very_often_is_found_without_being_sorted() {
        // More than are sorted, in one bucket until the last bits.
        let (low, high) = (1.0_f64, f64::from_bits(1.0_f64.to_bits() + 1));
        let mut numbers = vec![low; SORTED as usize + 1];
        assert_eq!([0.0, 0.5, 0.999].map(|share| streamed(&numbers, share)), [low.to_bits(); 3]);
        numbers.extend(vec![high; SORTED as usize + 1]);
        assert_eq!([0.0, 0.49, 0.51].map(|share| streamed(&numbers, share)), [high, high, low].map(f64::to_bits));
        assert_eq!(
            [streamed(&numbers, 1.0), streamed(&[], 0.5), streamed(&[0.0], 0.5)],
            [0.0, f64::INFINITY, f64::INFINITY].map(f64::to_bits)
        );
    }

    proptest! {
        /// Whole numbers, whose sums are exact in any order.
        #[test]
        fn streamed_is_sorted(numbers in prop::collection::vec(0_u32..60, 0..80), share in 0..=64_u32, scale in -40..40_i32) {
            let scale = f64::from(scale).exp2();
            let numbers: Vec<f64> = numbers.into_iter().map(|number| f64::from(number) * scale).collect();
            let share = f64::from(share) / 64.0;
            let mut positive: Vec<f64> = numbers.iter().copied().filter(|number| *number > 0.0).collect();
            prop_assert_eq!(streamed(&numbers, share), of_sorted(&mut positive, share).to_bits());
        }
    }
}
