//! A file that parts are read of.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;
use circuitlab_core::files::hexadecimal;
use sha2::{Digest, Sha256};

use super::local;
use super::remote::Remote;
use crate::Result;

/// How much of a file is read at once while it is digested, and how many such pieces are asked for together.
const PIECE_BYTES: u64 = 4 << 20;
const PIECES: u64 = 8;

/// Read of a remote file when it is opened: with its length come the first bytes, in which a chunk's header lies, for one request.
const HEAD_BYTES: u64 = 64 << 10;

/// A file that is open for reading.
#[derive(Debug)]
pub(crate) struct PlaceFile {
    path: PathBuf,
    length: u64,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Local(File),
    Remote { remote: Box<Remote>, name: String, head: Vec<u8> },
}

impl PlaceFile {
    pub(super) fn local(path: PathBuf) -> Result<Self> {
        let (file, length) = local::open(&path)?;
        Ok(Self { path, length, source: Source::Local(file) })
    }

    pub(super) fn remote(remote: &Remote, name: &str) -> Result<Self> {
        let (head, length) = remote.head(name, HEAD_BYTES)?;
        let source = Source::Remote { remote: Box::new(remote.clone()), name: name.to_owned(), head };
        Ok(Self { path: remote.path(name), length, source })
    }

    /// Its path, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Reads a stretch, which must lie inside the file, into memory that may have been used before.
    pub(crate) fn read(&self, range: Range<u64>, into: &mut Vec<u8>) -> Result<()> {
        debug_assert!(range.start <= range.end && range.end <= self.length, "{range:?} of {} bytes", self.length);
        match &self.source {
            Source::Local(file) => {
                // What was there need not be cleared: all of it is read over.
                into.resize((range.end - range.start) as usize, 0);
                Ok(local::read_exact_at(file, into, range.start).map_err(CoreError::io("read", &self.path))?)
            }
            Source::Remote { head, .. } if range.end <= head.len() as u64 => {
                into.clear();
                into.extend_from_slice(&head[range.start as usize..range.end as usize]);
                Ok(())
            }
            Source::Remote { .. } => {
                *into = self.fetch(&[range])?.and_then(|mut fetched| fetched.pop()).unwrap_or_default();
                Ok(())
            }
        }
    }

    /// Reads several stretches by requests that are under way together. Nothing is read of a local file, where that is no faster.
    pub(crate) fn fetch(&self, ranges: &[Range<u64>]) -> Result<Option<Vec<Vec<u8>>>> {
        let Source::Remote { remote, name, .. } = &self.source else {
            return Ok(None);
        };
        let fetched = remote.ranges(name, ranges)?;
        let cut = fetched.iter().zip(ranges).any(|(bytes, range)| bytes.len() as u64 != range.end - range.start);
        if cut || fetched.len() != ranges.len() {
            return Err(CoreError::format(&self.path, "the object store gave another number of bytes than it was asked for").into());
        }
        Ok(Some(fetched))
    }

    /// The SHA-256 of all of it, in hexadecimal.
    pub(crate) fn sha256(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut piece = Vec::new();
        for start in (0..self.length).step_by((PIECES * PIECE_BYTES) as usize) {
            let end = (start + PIECES * PIECE_BYTES).min(self.length);
            let cuts: Vec<Range<u64>> =
                (start..end).step_by(PIECE_BYTES as usize).map(|start| start..(start + PIECE_BYTES).min(end)).collect();
            if let Some(fetched) = self.fetch(&cuts)? {
                for piece in &fetched {
                    hasher.update(piece);
                }
                continue;
            }
            for cut in cuts {
                self.read(cut, &mut piece)?;
                hasher.update(&piece);
            }
        }
        Ok(hexadecimal(&hasher.finalize()))
    }
}
