//! Which files, and who reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use circuitlab_core::{Documents, Spec, TextSource};
use serde::{Deserialize, Serialize};

use super::digest::sha256_file;
use super::input;
use crate::Result;

/// A file of text and the source that reads it.
#[derive(Debug, Clone)]
pub struct SourceFile {
    path: PathBuf,
    spec: Spec,
    source: Arc<dyn TextSource>,
    bytes: u64,
    group: usize,
}

/// What a manifest keeps of a file of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Where it was. Not compared: the digest is.
    pub path: String,
    /// Who read it, with all settings.
    pub source: Spec,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// The documents of a file that is open.
pub(super) struct OpenFile {
    pub(super) pieces: Documents,
    read: Arc<AtomicU64>,
}

impl OpenFile {
    /// How much of the file was read, packed as it lies there.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl SourceFile {
    /// A file for a source, for the user's path number `group`.
    pub(super) fn new(path: &Path, spec: Spec, source: Arc<dyn TextSource>, group: usize) -> Result<Self> {
        let bytes = fs::metadata(path).map_err(circuitlab_core::Error::io("read", path))?.len();
        Ok(Self { path: path.to_path_buf(), spec, source, bytes, group })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length on disk, when it was found.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of the user's path that it was found by.
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// Its documents, in the file's order.
    ///
    /// # Errors
    /// A file that cannot be read or is no text of its kind.
    pub(super) fn documents(&self) -> Result<OpenFile> {
        let read = Arc::new(AtomicU64::new(0));
        let pieces = self.source.documents(input::open(&self.path, &read)?)?;
        Ok(OpenFile { pieces, read })
    }

    /// Its digest and who reads it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn record(&self) -> Result<SourceRecord> {
        let (sha256, bytes) = sha256_file(&self.path)?;
        Ok(SourceRecord { path: self.path.display().to_string(), source: self.spec.clone(), bytes, sha256 })
    }
}
