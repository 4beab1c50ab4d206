//! How fast a run goes, and how much of the time it waits for rows.

use std::time::Instant;

use crate::sink::names;

/// The time since the last record, and what of it was waited.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    step: u64,
    /// Seconds waited since the last record.
    waiting_s: f64,
    /// Seconds waited since the run began or went on.
    pub(super) waited_s: f64,
}

impl Pace {
    pub(super) fn new(step: u64) -> Self {
        Self { since: Instant::now(), step, waiting_s: 0.0, waited_s: 0.0 }
    }

    /// Does what is waited for.
    pub(super) fn waiting<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let got = wait();
        let seconds = began.elapsed().as_secs_f64();
        self.waiting_s += seconds;
        self.waited_s += seconds;
        got
    }

    /// The figures since the last record, which end it.
    pub(super) fn lap(&mut self, step: u64, batch_rows: u64) -> [(&'static str, f64); 2] {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let rows = (step - self.step) * batch_rows;
        let figures = [(names::TOKENS_PER_SECOND, rows as f64 / seconds), (names::DATA_WAIT_SHARE, (self.waiting_s / seconds).min(1.0))];
        *self = Self { waited_s: self.waited_s, ..Self::new(step) };
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_counts_from_record_to_record() {
        let mut pace = Pace::new(10);
        assert_eq!(pace.waiting(|| 7), 7);
        pace.waiting_s = 1e9;
        let [(_, rate), (name, share)] = pace.lap(12, 5);
        assert_eq!((name, share), (names::DATA_WAIT_SHARE, 1.0), "a share, whatever the clock says");
        assert!(rate > 0.0);
        assert_eq!(pace.lap(13, 5)[1], (names::DATA_WAIT_SHARE, 0.0));
    }
}
