//! `jsonl`: `metrics.jsonl`, one JSON object per line, made to be read by any script.

use std::fs;
use std::path::Path;

use circuitlab_core::files::write_atomic;
use circuitlab_core::{Construct, Error, MetricSink, Record, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::append::{AppendFile, not_open};

register!(metric_sink "jsonl" => JsonlConfig, "metrics.jsonl, one JSON object per line; the plots are drawn from it");

/// Config of the metric sink `jsonl`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonlConfig {}

impl Construct for JsonlConfig {
    type Output = Jsonl;

    fn construct(&self) -> Result<Jsonl> {
        Ok(Jsonl::default())
    }
}

/// Appends to a `metrics.jsonl`.
#[derive(Debug, Default)]
pub struct Jsonl {
    file: Option<AppendFile>,
}

impl MetricSink for Jsonl {
    fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()> {
        let path = run.join(Record::FILE);
        self.file = Some(match after_step {
            None => AppendFile::begin(&path)?,
            Some(step) => {
                truncate_after(&path, step)?;
                AppendFile::go_on(&path)?
            }
        });
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(|| not_open("jsonl"))?;
        file.append(format!("{}\n", record.to_json()).as_bytes())
    }

    fn sync(&mut self) -> Result<()> {
        self.file.as_ref().ok_or_else(|| not_open("jsonl"))?.sync()
    }
}

/// Rewrites the file with its whole lines of steps up to and including `step`. A file that is not there stays away.
fn truncate_after(path: &Path, step: u64) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let kept = bytes.split(|byte| *byte == b'\n').filter(|line| Record::from_line(line).is_some_and(|record| record.step <= step));
    write_atomic(path, |out| {
        for line in kept {
            out.write_all(line.trim_ascii())?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes on after a step over these bytes, and gives what is left of them.
    fn resumed(bytes: &[u8], step: u64, next: Option<&Record>) -> Vec<u8> {
        let run = tempfile::tempdir().expect("a folder");
        let path = run.path().join(Record::FILE);
        write_atomic(&path, |out| out.write_all(bytes)).expect("writes");
        let mut sink = Jsonl::default();
        sink.open(run.path(), Some(step)).expect("goes on");
        if let Some(record) = next {
            sink.write(record).expect("writes");
        }
        fs::read(&path).expect("reads")
    }

    #[test]
    fn a_torn_last_line_is_dropped_on_resume() {
        let bytes = b"{\"step\":1,\"a\":0.5}\n{\"step\":2,\"a\":null}\n{\"step\":3,\"a\":0.";
        let text = resumed(bytes, 9, Some(&Record::new(3).with("a", f64::NAN)));
        assert_eq!(text, b"{\"step\":1,\"a\":0.5}\n{\"step\":2,\"a\":null}\n{\"step\":3,\"a\":null}\n");
    }

    #[test]
    fn later_steps_are_cut_and_earlier_bytes_kept() {
        let bytes = b"{\"step\":1, \"other\": \"text\"}\n\n\0\xff\n{\"step\":5}\n{\"step\":3}";
        assert_eq!(resumed(bytes, 3, None), b"{\"step\":1, \"other\": \"text\"}\n{\"step\":3}\n");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_gone_on_with(bytes: Vec<u8>, step: u64) {
            let left = resumed(&bytes, step, Some(&Record::new(step)));
            let last = left.trim_ascii().split(|byte| *byte == b'\n').next_back();
            proptest::prop_assert_eq!(last.and_then(Record::from_line), Some(Record::new(step)));
        }
    }
}
