//! `metrics.jsonl`: one JSON object per line, made to be read by any script.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;
use circuitlab_core::files::write_atomic;
use serde_json::Value;

use super::{MetricSink, Record};
use crate::{Error, Result};

/// Appends to a `metrics.jsonl`.
#[derive(Debug)]
pub struct Jsonl {
    path: PathBuf,
    file: File,
}

impl Jsonl {
    /// Starts a file that is not there yet.
    ///
    /// # Errors
    /// [`Error::Exists`] when it is there, or when its folder cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        match OpenOptions::new().append(true).create_new(true).open(path) {
            Ok(file) => Ok(Self { path: path.to_path_buf(), file }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let hint = "resume that run, or choose another folder".to_owned();
                Err(Error::Exists { path: path.to_path_buf(), hint })
            }
            Err(error) => Err(CoreError::io("create", path)(error).into()),
        }
    }

    /// Goes on after `step`: later lines, and one that a killed process left unfinished, are dropped first.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        truncate_after(path, step)?;
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(CoreError::io("write", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }
}

impl MetricSink for Jsonl {
    fn write(&mut self, record: &Record) -> Result<()> {
        // One call for the whole line: a killed process tears it as seldom as the system allows.
        let line = format!("{}\n", record.to_json());
        Ok(self.file.write_all(line.as_bytes()).map_err(CoreError::io("write", &self.path))?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.file.sync_data().map_err(CoreError::io("write", &self.path))?)
    }
}

/// Reads all records. Lines that are none, such as a torn last one, are left out.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    each_line(path, |_, record| {
        records.push(record);
        Ok(())
    })
    .map_err(CoreError::io("read", path))?;
    Ok(records)
}

/// Rewrites the file with its whole lines of steps up to and including `step`, in one atomic step. A file that is not
/// there stays away.
///
/// # Errors
/// When the file cannot be read or written.
pub fn truncate_after(path: &Path, step: u64) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let rewritten = write_atomic(path, |out| {
        each_line(path, |line, record| {
            if record.step > step {
                return Ok(());
            }
            out.write_all(line)?;
            out.write_all(b"\n")
        })
    });
    Ok(rewritten?)
}

/// Calls `take` with every line that is a record, without its line end.
fn each_line(path: &Path, mut take: impl FnMut(&[u8], Record) -> io::Result<()>) -> io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = line.trim_ascii();
        match serde_json::from_slice::<Value>(text).ok().as_ref().and_then(Record::from_json) {
            Some(record) => take(text, record)?,
            None if text.is_empty() => {}
            None => tracing::warn!(path = %path.display(), line = number, "left out a line that is no record"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(path: &Path) -> Vec<u64> {
        read(path).expect("reads").iter().map(|record| record.step).collect()
    }

    fn put(path: &Path, bytes: &[u8]) {
        write_atomic(path, |out| out.write_all(bytes)).expect("writes");
    }

    #[test]
    fn a_torn_last_line_is_dropped_on_resume() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        put(&path, b"{\"step\":1,\"a\":0.5}\n{\"step\":2,\"a\":null}\n{\"step\":3,\"a\":0.");
        assert_eq!(steps(&path), [1, 2]);
        let mut sink = Jsonl::resume(&path, 9).expect("goes on");
        sink.write(&Record::new(3).with("a", f64::NAN)).expect("writes");
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(text, "{\"step\":1,\"a\":0.5}\n{\"step\":2,\"a\":null}\n{\"step\":3,\"a\":null}\n");
    }

    #[test]
    fn later_steps_are_cut_and_earlier_bytes_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        truncate_after(&path, 3).expect("nothing to do");
        assert!(!path.exists());
        put(&path, b"{\"step\":1, \"other\": \"text\"}\n\n\0\xff\n{\"step\":5}\n{\"step\":3}");
        truncate_after(&path, 3).expect("rewrites");
        assert_eq!(std::fs::read(&path).expect("reads"), b"{\"step\":1, \"other\": \"text\"}\n{\"step\":3}\n");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("nowhere/metrics.jsonl")).expect_err("no such file");
        assert_eq!(error.to_string(), "cannot read `nowhere/metrics.jsonl`");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, step: u64) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("metrics.jsonl");
            put(&path, &bytes);
            truncate_after(&path, step).expect("rewrites");
            proptest::prop_assert!(read(&path).expect("reads").iter().all(|record| record.step <= step));
        }
    }
}
