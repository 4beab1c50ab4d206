//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file beside its place, syncs it and renames it, so that a reader sees the old file or the whole new one. A
/// failed write leaves nothing behind.
///
/// # Errors
/// [`Error::Io`] when the folder is not there or the disk is full.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let part = part_path(path);
    let written = File::create(&part).and_then(|file| {
        let mut out = BufWriter::new(file);
        fill(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&part, path)).and_then(|()| sync_folder(path));
    done.map_err(|source| {
        // The first error is the one to tell; the part may not even exist.
        let _ = fs::remove_file(&part);
        Error::Io { action: "write", path: path.to_path_buf(), source }
    })
}

/// Moves a finished folder to its place in one step.
///
/// # Errors
/// [`Error::Io`] when the place is taken by a folder that is not empty.
pub fn publish_folder(part: &Path, place: &Path) -> Result<()> {
    fs::rename(part, place).and_then(|()| sync_folder(place)).map_err(Error::io("create", place))
}

/// The name under which a file or folder is written before it is renamed to `path`.
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    path.with_file_name(name)
}

/// Makes a rename durable: the entry lives in the folder.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_part() {
        let folder = std::env::temp_dir().join(format!("circuitlab-files-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("a.txt");
        write_atomic(&path, |out| out.write_all(b"old")).expect("writes");
        let error = write_atomic(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(error.expect_err("the fill failed").to_string(), format!("cannot write `{}`", path.display()));
        assert_eq!(fs::read(&path).expect("still there"), b"old");
        assert_eq!(fs::read_dir(&folder).expect("the folder").count(), 1);
        fs::remove_dir_all(&folder).expect("clean up");
    }
}
