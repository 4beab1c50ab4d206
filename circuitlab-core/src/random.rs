//! Random numbers that depend on a seed and a place, never on who draws them or in what order.
//!
//! Initial weights, shuffles and samples must be the same for any number of ranks, workers and restarts. So nothing here
//! has state that outlives a call: a stream is named by a seed and a label, and a permutation is a function of its index.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of random numbers named by a seed, a label and an index.
#[derive(Debug, Clone)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream `index` of `label`.
    pub fn new(seed: u64, label: &str, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&fnv1a(label).to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(index);
        Self(rng)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// The next number in `[0, 1)`, of 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn fnv1a(label: &str) -> u64 {
    label.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A random order of `0..len` that needs no memory: a four-round Feistel network on the next even power of two, walked
/// until it lands inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The order number `index` of `label` over `0..len`.
    pub fn new(seed: u64, label: &str, index: u64, len: u64) -> Self {
        let mut stream = Stream::new(seed, label, index);
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| stream.next_u64()) }
    }

    /// How many numbers it orders.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it orders nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number at `place`, for `place < len`.
    pub fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.len, "{place} is outside 0..{}", self.len);
        let mut value = place;
        loop {
            value = self.encrypt(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The finaliser of splitmix64: every input bit reaches every output bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_permutation_hits_every_number_once(seed: u64, index in 0_u64..5, len in 0_u64..2000) {
            let order = Permutation::new(seed, "rows", index, len);
            let mut seen: Vec<u64> = (0..len).map(|place| order.at(place)).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..len));
        }
    }

    #[test]
    fn orders_differ_by_seed_label_and_index() {
        let order = |seed, label, index| {
            let p = Permutation::new(seed, label, index, 1000);
            (0..1000).map(|place| p.at(place)).collect::<Vec<_>>()
        };
        let base = order(1, "rows", 0);
        assert_eq!(base, order(1, "rows", 0));
        for other in [order(2, "rows", 0), order(1, "chunks", 0), order(1, "rows", 1)] {
            assert!(base.iter().zip(&other).filter(|(a, b)| a == b).count() < 20);
        }
    }

    #[test]
    fn neighbours_are_torn_apart() {
        let order = Permutation::new(7, "rows", 0, 100_000);
        let near = (1..100_000).filter(|place| order.at(*place).abs_diff(order.at(place - 1)) < 1000).count();
        // Two random places of 100 000 are less than 1000 apart with probability 0.0199.
        assert!((1500..2500).contains(&near), "{near}");
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval() {
        let mut stream = Stream::new(3, "W_enc_0", 9);
        let numbers: Vec<f64> = (0..10_000).map(|_| stream.uniform()).collect();
        let mean = numbers.iter().sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
    }
}
