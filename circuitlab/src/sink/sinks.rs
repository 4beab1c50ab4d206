//! All sinks of a run behind one call.

use std::path::{Path, PathBuf};

use circuitlab_core::{MetricSink, Registry, Spec};

use super::{Record, jsonl, plots};
use crate::Result;

/// The sinks of one run.
#[derive(Debug, Default)]
pub struct Sinks {
    sinks: Vec<Box<dyn MetricSink>>,
}

impl Sinks {
    /// Looks the sinks up; nothing is written yet.
    ///
    /// # Errors
    /// Unknown names, and settings that a sink refuses.
    pub fn build(registry: &Registry, specs: &[Spec]) -> Result<Self> {
        let sinks = specs.iter().map(|spec| registry.build::<dyn MetricSink>(spec)).collect::<circuitlab_core::Result<_>>()?;
        Ok(Self { sinks })
    }

    /// Begins in a run folder, or goes on after a step: figures of later steps, which will be trained again, are dropped then.
    ///
    /// # Errors
    /// When figures are there where a run begins, or the folder cannot be read or written.
    pub fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()> {
        Ok(self.sinks.iter_mut().try_for_each(|sink| sink.open(run, after_step))?)
    }

    /// Hands a record to every sink.
    ///
    /// # Errors
    /// That of the first sink that cannot take it.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        Ok(self.sinks.iter_mut().try_for_each(|sink| sink.write(record))?)
    }

    /// Makes everything so far survive a power cut.
    ///
    /// # Errors
    /// That of the first sink that fails.
    pub fn sync(&mut self) -> Result<()> {
        Ok(self.sinks.iter_mut().try_for_each(|sink| sink.sync())?)
    }

    /// Draws what `metrics.jsonl` in a run folder holds into its `plots/`, and returns the files: none where a run keeps no such
    /// file.
    ///
    /// # Errors
    /// When the metrics cannot be read or the plots not be written.
    pub fn plot(run: &Path) -> Result<Vec<PathBuf>> {
        match jsonl::read(run)? {
            Some(records) => plots::write(&records, &run.join("plots")),
            None => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sinks(names: &[&str]) -> Sinks {
        circuitlab_plugins::link();
        let registry = Registry::linked().expect("no name twice");
        Sinks::build(&registry, &names.iter().map(|name| Spec::named(*name)).collect::<Vec<_>>()).expect("known")
    }

    fn opened(names: &[&str], run: &Path, after_step: Option<u64>) -> Sinks {
        let mut sinks = sinks(names);
        sinks.open(run, after_step).expect("opens");
        sinks
    }

    #[test]
    fn a_run_goes_on_where_its_checkpoint_was() {
        let (run, both) = (tempfile::tempdir().expect("a folder"), ["jsonl", "tensorboard"]);
        let mut first = opened(&both, run.path(), None);
        for step in 1..=5 {
            first.write(&Record::new(step).with("loss/total", 10.0 / step as f64)).expect("writes");
        }
        assert!(sinks(&both).open(run.path(), None).is_err(), "a second run must not mix with the first");
        drop(first);
        let mut second = opened(&both, run.path(), Some(3));
        second.write(&Record::new(4).with("loss/total", 1.5)).expect("writes");
        second.sync().expect("a working disk");
        let records = jsonl::read(run.path()).expect("reads").expect("written");
        assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let count = std::fs::read_dir(run.path()).expect("the folder").count();
        assert_eq!(count, 3, "metrics.jsonl and two event files");
        assert_eq!(Sinks::plot(run.path()).expect("draws").len(), 1);
    }

    #[test]
    fn a_run_without_json_lines_has_no_plots() {
        let run = tempfile::tempdir().expect("a folder");
        opened(&["csv"], run.path(), None).write(&Record::new(1).with("loss/total", 1.0)).expect("writes");
        assert!(Sinks::plot(run.path()).expect("nothing to draw").is_empty());
        assert!(!run.path().join("plots").exists());
    }
}
