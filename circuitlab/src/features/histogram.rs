//! How strongly a feature fires, as counts in bins.
//!
//! There are eight bins to an octave, so that a bin is at most an eighth wider than its lower end, from 2^-16 up to 2^16; what lies
//! beyond is in the outermost bins. The bin of a number is a part of its bits, so every count is exact, and counts of parts of a text add up to
//! those of the whole.

use serde::{Deserialize, Serialize};

/// Bits of an f32 below those that tell its bin: 23 of the fraction, of which the first three count.
const SHIFT: u32 = 20;

/// The bin, counted from that of 0.0, which begins at 2^-16.
const FIRST: u32 = (127 - 16) << (23 - SHIFT);

/// How many bins there are.
pub(super) const BINS: usize = 32 << (23 - SHIFT);

/// Counts of values by size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// One for each bin, or nothing where nothing was counted.
    counts: Vec<u64>,
}

/// One bin of a [`Histogram`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// The lower end, which is in it.
    pub from: f32,
    /// The upper end, which is not.
    pub to: f32,
    /// How many values are in it.
    pub count: u64,
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: f32) {
        if self.counts.is_empty() {
            self.counts = vec![0; BINS];
        }
        self.counts[bin(value)] += 1;
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.is_empty() {
            self.counts.clone_from(&other.counts);
            return;
        }
        for (own, new) in self.counts.iter_mut().zip(&other.counts) {
            *own += new;
        }
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The bins that are not empty, from below.
    pub fn bins(&self) -> impl Iterator<Item = Bin> + '_ {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(index, count)| Bin { from: lower_end(index), to: lower_end(index + 1), count: *count })
    }

    /// Upper bounds of `parts - 1` of `parts` quantiles: the i-th is the upper end of the first bin up to which at least the share
    /// `i / parts` of all values lies. Empty where nothing was counted.
    pub fn quantiles(&self, parts: usize) -> Vec<f32> {
        let total = self.total();
        let (mut bounds, mut below) = (Vec::new(), 0_u64);
        for (index, count) in self.counts.iter().enumerate() {
            below += count;
            while total > 0
                && bounds.len() + 1 < parts
                && u128::from(below) * parts as u128 >= u128::from(total) * (bounds.len() as u128 + 1)
            {
                bounds.push(lower_end(index + 1));
            }
        }
        bounds
    }
}

/// The filled bins with their numbers, which is how a histogram is written.
impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let filled: Vec<(u16, u64)> =
            self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, count)| (index as u16, *count)).collect();
        filled.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let filled = Vec::<(u16, u64)>::deserialize(deserializer)?;
        let mut counts = if filled.is_empty() { Vec::new() } else { vec![0; BINS] };
        for (index, count) in filled {
            let place = counts.get_mut(usize::from(index));
            *place.ok_or_else(|| serde::de::Error::custom(format!("a histogram has no bin {index}")))? = count;
        }
        Ok(Self { counts })
    }
}

fn bin(value: f32) -> usize {
    if value <= 0.0 {
        return 0;
    }
    ((value.to_bits() >> SHIFT).saturating_sub(FIRST) as usize).min(BINS - 1)
}

fn lower_end(bin: usize) -> f32 {
    f32::from_bits((bin as u32 + FIRST) << SHIFT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ends_are_powers_and_eighths() {
        let ends: Vec<f32> = (0..9).map(lower_end).map(|end| end * 65536.0).collect();
        assert_eq!(ends, [1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875, 2.0]);
        assert_eq!((lower_end(BINS), bin(f32::MAX), bin(-3.0), bin(1e-30)), (65536.0, BINS - 1, 0, 0));
    }

    proptest! {
        #[test]
        fn counts_and_quantiles_are_those_of_the_sorted_values(
            values in prop::collection::vec(2e-5_f32..6e4, 1..200),
            parts in 1_usize..12,
            cut in 0_usize..200,
        ) {
            let (mut whole, mut first, mut second) = (Histogram::default(), Histogram::default(), Histogram::default());
            for (index, value) in values.iter().enumerate() {
                whole.add(*value);
                if index < cut { first.add(*value) } else { second.add(*value) }
            }
            first.merge(&second);
            prop_assert_eq!(&first, &whole);
            prop_assert_eq!(whole.total(), values.len() as u64);
            for bin in whole.bins() {
                let inside = values.iter().filter(|value| (bin.from..bin.to).contains(value)).count();
                prop_assert_eq!(inside as u64, bin.count);
                prop_assert!(bin.to <= bin.from * 1.125);
            }
            let mut sorted = values;
            sorted.sort_by(f32::total_cmp);
            let bounds = whole.quantiles(parts);
            prop_assert_eq!(bounds.len(), parts - 1);
            for (index, bound) in bounds.iter().enumerate() {
                // The value at which the share is reached lies in the bin that ends at the bound.
                let reached = sorted[((index + 1) * sorted.len()).div_ceil(parts) - 1];
                prop_assert!(reached < *bound && *bound <= reached * 1.125 * 1.000_001, "{} {}", reached, bound);
            }
            let written = postcard::to_stdvec(&whole).expect("writes");
            prop_assert_eq!(postcard::from_bytes::<Histogram>(&written).expect("reads"), whole);
        }
    }
}
