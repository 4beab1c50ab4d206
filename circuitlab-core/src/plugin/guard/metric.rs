//! Guarded metric sinks.

use std::path::Path;

use super::guarded::Guarded;
use crate::{MetricSink, Record, Result};

/// Guards a metric sink.
///
/// # Errors
/// None; the other kinds have some.
#[allow(clippy::unnecessary_wraps, reason = "all kinds are guarded alike")]
pub fn metric_sink<T: MetricSink + 'static>(what: &'static str, made: T) -> Result<Box<dyn MetricSink>> {
    Ok(Box::new(Guarded::new(what, made)))
}

impl<T: MetricSink> MetricSink for Guarded<T, ()> {
    fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()> {
        self.call_mut(|sink| sink.open(run, after_step))
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        self.call_mut(|sink| sink.write(record))
    }

    fn sync(&mut self) -> Result<()> {
        self.call_mut(T::sync)
    }
}
