//! Reading `metrics.jsonl`, from which plots and summaries are made. The sink `jsonl` writes it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use circuitlab_core::Error as CoreError;

use super::Record;
use crate::Result;

/// The records of a run; nothing where it keeps no such file. Lines that are none, such as a torn last one, are left out.
///
/// # Errors
/// When the file cannot be read.
pub fn read(run: &Path) -> Result<Option<Vec<Record>>> {
    let path = run.join(Record::FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CoreError::io("read", &path)(error).into()),
    };
    let mut records = Vec::new();
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        match Record::from_line(line) {
            Some(record) => records.push(record),
            None if line.trim_ascii().is_empty() => {}
            None => tracing::warn!(path = %path.display(), line = number, "left out a line that is no record"),
        }
    }
    Ok(Some(records))
}

#[cfg(test)]
mod tests {
    use circuitlab_core::files::write_atomic;

    use super::*;

    fn read_bytes(bytes: &[u8]) -> Vec<Record> {
        let run = tempfile::tempdir().expect("a folder");
        write_atomic(&run.path().join(Record::FILE), |out| out.write_all(bytes)).expect("writes");
        read(run.path()).expect("reads").expect("it is there")
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        let records = read_bytes(b"{\"step\":1,\"a\":0.5}\n\0\xff\n\n{\"step\":2,\"a\":null}\n{\"step\":3,\"a\":0.");
        assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(records[0].get("a"), Some(0.5));
    }

    #[test]
    fn a_run_without_the_file_has_no_records() {
        assert_eq!(read(Path::new("nowhere")).expect("no file"), None);
        let run = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(run.path().join(Record::FILE)).expect("a folder of that name");
        let error = read(run.path()).expect_err("a folder").to_string();
        assert!(error.starts_with("cannot read `") && error.ends_with("metrics.jsonl`"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            read_bytes(&bytes);
        }
    }
}
