//! Folders of the file system.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use circuitlab_core::Error as CoreError;
use circuitlab_core::files::{try_lock_folder, write_atomic};

use super::folder::Entries;
use crate::{Error, Result};

pub(super) fn entries(folder: &Path) -> Result<Entries> {
    let mut found = Entries::default();
    for entry in fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let entry = entry.map_err(CoreError::io("read", folder))?;
        // Names that are no text are none of a cache's. Links are followed: a part may lie elsewhere.
        let name = entry.file_name().to_string_lossy().into_owned();
        match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() => found.folders.push(name),
            Ok(metadata) => drop(found.files.insert(name, metadata.len())),
            // Removed meanwhile, or a link to nowhere.
            Err(_) => {}
        }
    }
    found.folders.sort();
    Ok(found)
}

pub(super) fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CoreError::io("read", path)(error).into()),
    }
}

pub(super) fn write(path: &Path, pieces: &[&[u8]]) -> Result<()> {
    Ok(write_atomic(path, |out| pieces.iter().try_for_each(|piece| out.write_all(piece)))?)
}

/// Makes a folder, keeps other processes out of it, and removes what a killed one had not yet renamed.
pub(super) fn begin(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
    let lock = try_lock_folder(folder)?.ok_or_else(|| {
        let hint = "another process is writing this part; wait for it, or give each job its own number".to_owned();
        Error::Exists { path: folder.to_path_buf(), hint }
    })?;
    for name in entries(folder)?.files.keys() {
        if Path::new(&name).extension().is_some_and(|extension| extension == "part") {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(CoreError::io("remove", &path))?;
        }
    }
    Ok(lock)
}

/// Reads `buffer.len()` bytes from a place of a file on.
#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

/// Reads `buffer.len()` bytes from a place of a file on.
#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match std::os::windows::fs::FileExt::seek_read(file, &mut buffer[done..], at + done as u64)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            got => done += got,
        }
    }
    Ok(())
}

pub(super) fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(CoreError::io("read", path))?;
    let length = file.metadata().map_err(CoreError::io("read", path))?.len();
    Ok((file, length))
}
