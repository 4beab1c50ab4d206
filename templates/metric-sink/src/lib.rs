//! `tidy`: `metrics-tidy.csv` with one figure a line, `step,name,value`: the long form that pandas, R and databases like best.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use circuitlab_core::files::write_atomic;
use circuitlab_core::{Construct, Error, MetricSink, Record, Result, register};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(metric_sink "tidy" => TidyConfig, "metrics-tidy.csv, one figure per line: step, name, value");
circuitlab_core::export_plugin!();

const HEADER: &str = "step,name,value\n";

/// Settings of `tidy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TidyConfig {
    /// Only figures whose names begin with one of these are written. Default: `[""]`, which is all of them.
    pub prefixes: Vec<String>,
}

impl Default for TidyConfig {
    fn default() -> Self {
        Self { prefixes: vec![String::new()] }
    }
}

/// The sink.
#[derive(Debug)]
pub struct Tidy {
    prefixes: Vec<String>,
    /// The open file and its path; none before `open`.
    file: Option<(File, PathBuf)>,
}

impl Construct for TidyConfig {
    type Output = Tidy;

    fn construct(&self) -> Result<Tidy> {
        if self.prefixes.is_empty() {
            let message = "an empty list leaves no figure; expected beginnings of names, such as `loss/`";
            return Err(Error::config("metric-sink `tidy`, key `prefixes`", message));
        }
        Ok(Tidy { prefixes: self.prefixes.clone(), file: None })
    }
}

impl MetricSink for Tidy {
    fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()> {
        let path = run.join("metrics-tidy.csv");
        let kept = match after_step {
            None if path.exists() => return Err(Error::format(path, "it is there already; resume that run, or choose another folder")),
            Some(step) if path.exists() => until(&fs::read(&path).map_err(Error::io("read", &path))?, step),
            _ => HEADER.into(),
        };
        // Written beside its place and renamed: a process that is killed here leaves the old file or the new one.
        write_atomic(&path, |out| out.write_all(&kept))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("write", &path))?;
        self.file = Some((file, path));
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let (file, path) = self.file.as_mut().ok_or_else(not_open)?;
        let wanted = record.iter().filter(|(name, _)| self.prefixes.iter().any(|prefix| name.starts_with(prefix)));
        let lines: String = wanted.map(|(name, value)| format!("{},{},{value:?}\n", record.step, quoted(name))).collect();
        // No buffer: what was handed over must survive the end of this process.
        file.write_all(lines.as_bytes()).map_err(Error::io("write", &*path))
    }

    fn sync(&mut self) -> Result<()> {
        let (file, path) = self.file.as_ref().ok_or_else(not_open)?;
        file.sync_data().map_err(Error::io("write", path))
    }
}

fn not_open() -> Error {
    Error::Invalid("metric-sink `tidy`: it was not opened; call `open` first".to_owned())
}

/// The header and the whole lines of steps up to and including `last`.
fn until(bytes: &[u8], last: u64) -> Vec<u8> {
    let mut kept = HEADER.as_bytes().to_vec();
    let mut begin = 0;
    let mut in_quotes = false;
    for (at, byte) in bytes.iter().enumerate() {
        in_quotes ^= *byte == b'"';
        // A name in quotes may hold a line end.
        if *byte == b'\n' && !in_quotes {
            let line = &bytes[begin..=at];
            if step(line).is_some_and(|step| step <= last) {
                kept.extend_from_slice(line);
            }
            begin = at + 1;
        }
    }
    kept
}

/// The step of a line; the header has none.
fn step(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.split(',').next()?.parse().ok()
}

fn quoted(name: &str) -> String {
    if name.contains([',', '"', '\r', '\n']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_names_are_written() {
        let run = tempfile::tempdir().expect("a folder");
        let mut sink = TidyConfig { prefixes: vec!["loss/".into(), "l0".into()] }.construct().expect("a list");
        sink.open(run.path(), None).expect("an empty folder");
        sink.write(&Record::new(10).with("loss/mse", 0.5).with("schedule/lambda", 2.0).with("l0/layer_0", f64::NAN)).expect("writes");
        let text = fs::read_to_string(run.path().join("metrics-tidy.csv")).expect("written");
        assert_eq!(text, "step,name,value\n10,loss/mse,0.5\n10,l0/layer_0,NaN\n");
        let error = TidyConfig { prefixes: vec![] }.construct().expect_err("nothing to write").to_string();
        assert!(error.starts_with("metric-sink `tidy`, key `prefixes`: an empty list"), "{error}");
    }
}
