//! A file that is only added to.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use circuitlab_core::{Error, Result};

/// An open file and its name.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    file: File,
}

impl AppendFile {
    /// Begins a file that must not be there yet.
    pub(super) fn begin(path: &Path) -> Result<Self> {
        Self::try_begin(path)?.ok_or_else(|| taken(path))
    }

    /// The same, but nothing where the name is taken.
    pub(super) fn try_begin(path: &Path) -> Result<Option<Self>> {
        match OpenOptions::new().append(true).create_new(true).open(path) {
            Ok(file) => Ok(Some(Self { path: path.to_path_buf(), file })),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(Error::io("create", path)(error)),
        }
    }

    /// Goes on with a file, or begins it.
    pub(super) fn go_on(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("write", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds bytes in one call, so that a killed process tears them as seldom as the system allows.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

/// A run begins where figures are already.
pub(super) fn taken(path: &Path) -> Error {
    Error::format(path, "it is there already; resume that run, or choose another folder")
}

/// A sink is used before it was opened.
pub(super) fn not_open(name: &str) -> Error {
    Error::Invalid(format!("metric-sink `{name}`: it was not opened; call `open` first"))
}
