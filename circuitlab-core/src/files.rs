//! Files that are written whole or not at all.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file beside its place, syncs it and renames it, so that a reader sees the old file or the whole new one. A
/// failed write leaves nothing behind.
///
/// # Errors
/// [`Error::Io`] when the folder is not there or the disk is full.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    replace(path, |file, _| {
        let mut out = BufWriter::new(file);
        let written = fill(&mut out).and_then(|()| out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all());
        written.map_err(Error::io("write", path))
    })
}

/// The same by somebody who writes the file as it is, and syncs it. `fill` is given the empty file and the name that it has meanwhile.
pub(crate) fn replace(path: &Path, fill: impl FnOnce(File, &Path) -> Result<()>) -> Result<()> {
    let part = part_path(path);
    let written = File::create(&part).map_err(Error::io("write", path)).and_then(|file| fill(file, &part));
    let moved = || fs::rename(&part, path).and_then(|()| sync_folder(path)).map_err(Error::io("write", path));
    written.and_then(|()| moved()).inspect_err(|_| {
        // The first error is the one to tell; the part may not even exist.
        let _ = fs::remove_file(&part);
    })
}

/// Fills a folder beside its place and renames it, so that a reader sees no folder or the whole one. What an earlier process left
/// half-filled is removed first, and so is this one's where filling fails.
///
/// # Errors
/// What `fill` returns, and [`Error::Io`] when the place is taken by a folder that is not empty.
pub fn write_folder<E: From<Error>>(place: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let part = part_path(place);
    remove_folder(&part)?;
    let filled = fs::create_dir_all(&part).map_err(Error::io("create", &part)).map_err(E::from).and_then(|()| fill(&part));
    filled.and_then(|()| publish_folder(place).map_err(E::from)).inspect_err(|_| {
        // A full disk is the likely cause: give its room back, and tell the first error.
        let _ = fs::remove_dir_all(&part);
    })
}

/// Gives the folder, or the file, that was filled under the name [`part_path`] its own name. A file takes the place of another one.
///
/// # Errors
/// [`Error::Io`] when the place is taken by a folder that is not empty.
pub fn publish_folder(place: &Path) -> Result<()> {
    fs::rename(part_path(place), place).and_then(|()| sync_folder(place)).map_err(Error::io("create", place))
}

/// Removes a folder if it is there. It gets another name first, so that a process that is killed half way leaves nothing that
/// looks whole.
///
/// # Errors
/// What the file system returns.
pub fn remove_folder(folder: &Path) -> Result<()> {
    let doomed = if folder.extension().is_some_and(|extension| extension == "part") { folder.to_path_buf() } else { part_path(folder) };
    if doomed != folder && folder.exists() {
        if doomed.exists() {
            fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed))?;
        }
        fs::rename(folder, &doomed).map_err(Error::io("rename", folder))?;
    }
    if doomed.exists() { fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed)) } else { Ok(()) }
}

/// Locks a folder itself, so that no file is left over; the lock ends with the file that is given back. Nothing is given back where
/// another process holds it.
///
/// # Errors
/// A folder that cannot be opened.
pub fn try_lock_folder(folder: &Path) -> Result<Option<File>> {
    let file = File::open(folder).map_err(Error::io("read", folder))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // Some network file systems have no locks; the lock only guards against a mistake.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
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

/// Bytes as text, two digits each: how digests are written.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
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
