//! The folders of a run's checkpoints.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use circuitlab_core::{Error as CoreError, files};

use crate::Result;

/// Where the checkpoint after a step lies.
pub(in crate::train) fn place(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:08}"))
}

/// The newest checkpoint, if there is one.
pub(in crate::train) fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    Ok(all(checkpoints)?.pop())
}

/// The newest checkpoint of a run folder, if there is one.
pub(crate) fn newest_checkpoint(run: &Path) -> Result<Option<PathBuf>> {
    newest(&run.join("checkpoints"))
}

/// Removes all but the newest `keep`, and what a killed process left half-written.
pub(in crate::train) fn prune(checkpoints: &Path, keep: usize) -> Result<()> {
    let whole = all(checkpoints)?;
    for old in whole.iter().rev().skip(keep.max(1)) {
        files::remove_folder(old)?;
    }
    for entry in entries(checkpoints)? {
        if entry.extension().is_some_and(|extension| extension == "part") {
            files::remove_folder(&entry)?;
        }
    }
    Ok(())
}

/// Checkpoints from the oldest to the newest.
fn all(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let step = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let mut whole: Vec<PathBuf> = entries(checkpoints)?.into_iter().filter(|path| step(path).is_some()).collect();
    whole.sort_by_key(step);
    Ok(whole)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CoreError::io("read", folder)(error).into()),
    };
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(CoreError::io("read", folder))?)
}
