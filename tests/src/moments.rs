//! Chance for tests that break things: a new seed each time, printed so that a failure can be looked into.

#![allow(clippy::print_stdout, reason = "a failure is looked into by its seed")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Draws moments and choices.
#[derive(Debug)]
pub struct Moments(u64);

impl Moments {
    /// With a seed of the clock, which is printed.
    ///
    /// # Panics
    /// When the clock says that it is before 1970.
    #[allow(clippy::new_without_default, reason = "two are not alike")]
    pub fn new() -> Self {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").subsec_nanos();
        println!("moments drawn from {seed}");
        Self(u64::from(seed) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Between two moments.
    pub fn between(&mut self, first: Duration, last: Duration) -> Duration {
        first + last.saturating_sub(first).mul_f64((self.next() % 10_000) as f64 / 1e4)
    }

    /// One of `0..count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() >> 16) as usize % count
    }
}
