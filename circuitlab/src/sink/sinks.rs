//! All sinks of a run behind one call.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use super::{Jsonl, Record, TensorBoard, jsonl, plots};
use crate::Result;

/// The file in a run folder that [`Jsonl`] writes.
const METRICS: &str = "metrics.jsonl";

/// Takes the figures of a run as they come.
pub trait MetricSink: Debug + Send {
    /// Takes one record. What was handed over survives the end of this process, though perhaps not a power cut.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn write(&mut self, record: &Record) -> Result<()>;

    /// Makes everything so far survive a power cut too: for checkpoints, not for every step.
    ///
    /// # Errors
    /// When the place cannot be written.
    fn sync(&mut self) -> Result<()>;
}

/// The sinks of one run.
#[derive(Debug, Default)]
pub struct Sinks {
    sinks: Vec<Box<dyn MetricSink>>,
}

impl Sinks {
    /// Starts `metrics.jsonl` and a TensorBoard event file in a run folder that has neither.
    ///
    /// # Errors
    /// When `metrics.jsonl` is there already, or the folder cannot be written.
    pub fn create(run: &Path) -> Result<Self> {
        let metrics = Jsonl::create(&run.join(METRICS))?;
        Ok(Self { sinks: vec![Box::new(metrics), Box::new(TensorBoard::create(run)?)] })
    }

    /// Goes on after `step`: figures of later steps, which will be trained again, are dropped from both files.
    ///
    /// # Errors
    /// When the folder cannot be read or written.
    pub fn resume(run: &Path, step: u64) -> Result<Self> {
        let metrics = Jsonl::resume(&run.join(METRICS), step)?;
        Ok(Self { sinks: vec![Box::new(metrics), Box::new(TensorBoard::resume(run, step)?)] })
    }

    /// Hands a record to every sink.
    ///
    /// # Errors
    /// That of the first sink that cannot take it.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| sink.write(record))
    }

    /// Makes everything so far survive a power cut.
    ///
    /// # Errors
    /// That of the first sink that fails.
    pub fn sync(&mut self) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| sink.sync())
    }

    /// Draws what `metrics.jsonl` in a run folder holds into its `plots/`, and returns the files.
    ///
    /// # Errors
    /// When the metrics cannot be read or the plots not be written.
    pub fn plot(run: &Path) -> Result<Vec<PathBuf>> {
        plots::write(&jsonl::read(&run.join(METRICS))?, &run.join("plots"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_goes_on_where_its_checkpoint_was() {
        let run = tempfile::tempdir().expect("a folder");
        let mut sinks = Sinks::create(run.path()).expect("an empty folder");
        for step in 1..=5 {
            sinks.write(&Record::new(step).with("loss/total", 10.0 / step as f64)).expect("writes");
        }
        assert!(Sinks::create(run.path()).is_err(), "a second run must not mix with the first");
        drop(sinks);
        let mut sinks = Sinks::resume(run.path(), 3).expect("goes on");
        sinks.write(&Record::new(4).with("loss/total", 1.5)).expect("writes");
        sinks.sync().expect("a working disk");
        let records = jsonl::read(&run.path().join(METRICS)).expect("reads");
        assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let count = std::fs::read_dir(run.path()).expect("the folder").count();
        assert_eq!(count, 3, "metrics.jsonl and two event files");
        assert_eq!(Sinks::plot(run.path()).expect("draws").len(), 1);
    }
}
