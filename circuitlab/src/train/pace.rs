//! How fast a run goes, and how much of the time it waits for rows.

use std::time::Instant;

use crate::sink::{Record, names};

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

    /// Adds the figures since the last record, and begins anew.
    pub(super) fn record(&mut self, record: &mut Record, batch_rows: usize) {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let rows = (record.step - self.step) * batch_rows as u64;
        record.push(names::TOKENS_PER_SECOND, rows as f64 / seconds);
        record.push(names::DATA_WAIT_SHARE, (self.waiting_s / seconds).min(1.0));
        *self = Self { waited_s: self.waited_s, ..Self::new(record.step) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_counts_from_record_to_record() {
        let mut pace = Pace::new(10);
        let mut record = Record::new(12);
        assert_eq!(pace.waiting(|| 7), 7);
        pace.waiting_s = 1e9;
        pace.record(&mut record, 5);
        assert_eq!(record.get(names::DATA_WAIT_SHARE), Some(1.0), "a share, whatever the clock says");
        assert!(record.get(names::TOKENS_PER_SECOND).is_some_and(|rate| rate > 0.0));
        let mut next = Record::new(13);
        pace.record(&mut next, 5);
        assert_eq!(next.get(names::DATA_WAIT_SHARE), Some(0.0));
    }
}
