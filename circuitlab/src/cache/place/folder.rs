//! One way to the files of a cache, wherever it lies.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;
use reqwest::Url;

use super::file::PlaceFile;
use super::local;
use super::remote::Remote;
use crate::{Error, Result};

/// The folder of a cache, or of a part.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the file system.
    Local(PathBuf),
    /// In an object store.
    Remote(Box<Remote>),
}

/// What lies in a folder.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(crate) folders: Vec<String>,
    /// Lengths by name.
    pub(crate) files: BTreeMap<String, u64>,
}

/// The content of a file.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) bytes: Vec<u8>,
    pub(crate) version: Version,
}

/// Tells two contents of one file apart, where the place can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(super) e_tag: Option<String>,
    pub(super) version: Option<String>,
}

/// When a file may be written. A local folder has a lock instead.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition<'a> {
    /// Whatever is there.
    Always,
    /// Where there is none.
    New,
    /// Where it is the one that was read or written last.
    Replaces(&'a Version),
}

/// Keeps other processes of this machine out of a local folder while it is held.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Option<File>,
}

/// Whether a path is written as a URL.
pub(crate) fn is_url(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains("://"))
}

impl Place {
    /// A folder by its path or URL.
    ///
    /// # Errors
    /// A URL that names no store.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let Some(text) = path.to_str().filter(|_| is_url(path)) else {
            return Ok(Self::Local(path.to_path_buf()));
        };
        if !text.starts_with("file://") {
            return Ok(Self::Remote(Box::new(Remote::open(text)?)));
        }
        let folder = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
        folder
            .map(Self::Local)
            .ok_or_else(|| Error::Invalid(format!("place `{text}`: expected a whole path, such as `file:///data/cache`")))
    }

    /// Its path or URL, for messages.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Local(folder) => folder.clone(),
            Self::Remote(remote) => PathBuf::from(remote.url()),
        }
    }

    /// A folder in it.
    pub(crate) fn join(&self, folder: &str) -> Self {
        match self {
            Self::Local(outer) => Self::Local(outer.join(folder)),
            Self::Remote(remote) => Self::Remote(Box::new(remote.join(folder))),
        }
    }

    /// What lies in it.
    ///
    /// # Errors
    /// A local folder that is not there, and a store that cannot be reached.
    pub(crate) fn entries(&self) -> Result<Entries> {
        match self {
            Self::Local(folder) => local::entries(folder),
            Self::Remote(remote) => remote.entries(),
        }
    }

    /// Whether nothing is in it, and nothing else stands in its place.
    pub(crate) fn is_free(&self) -> Result<bool> {
        match self {
            Self::Local(folder) => Ok(!folder.exists() || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())),
            Self::Remote(remote) => remote.entries().map(|found| found.folders.is_empty() && found.files.is_empty()),
        }
    }

    /// Whether it is there, be it empty.
    pub(crate) fn exists(&self) -> Result<bool> {
        match self {
            Self::Local(folder) => Ok(folder.exists()),
            Self::Remote(_) => self.is_free().map(|free| !free),
        }
    }

    /// The length of a file, if it is there.
    pub(crate) fn length(&self, file: &str) -> Result<Option<u64>> {
        match self {
            Self::Local(folder) => local::length(&folder.join(file)),
            Self::Remote(remote) => remote.length(file),
        }
    }

    /// Reads a file whole.
    pub(crate) fn read(&self, file: &str) -> Result<Stored> {
        match self {
            Self::Local(folder) => {
                let path = folder.join(file);
                let bytes = fs::read(&path).map_err(CoreError::io("read", &path))?;
                Ok(Stored { bytes, version: Version::default() })
            }
            Self::Remote(remote) => remote.read(file),
        }
    }

    /// Opens a file to read parts of it.
    pub(crate) fn open(&self, file: &str) -> Result<PlaceFile> {
        match self {
            Self::Local(folder) => PlaceFile::local(folder.join(file)),
            Self::Remote(remote) => PlaceFile::remote(remote, file),
        }
    }

    /// Writes a file whole or not at all.
    pub(crate) fn write(&self, file: &str, pieces: &[&[u8]], condition: Condition<'_>) -> Result<Version> {
        match self {
            Self::Local(folder) => local::write(&folder.join(file), pieces).map(|()| Version::default()),
            Self::Remote(remote) => remote.write(file, pieces.concat(), condition),
        }
    }

    /// Makes it ready to be written to.
    ///
    /// # Errors
    /// A local folder that another process writes to.
    pub(crate) fn begin(&self) -> Result<Lock> {
        match self {
            Self::Local(folder) => Ok(Lock { _file: Some(local::begin(folder)?) }),
            Self::Remote(_) => Ok(Lock { _file: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_file_urls_are_local() {
        for (text, folder) in [("a/b", "a/b"), ("file:///a/b%20c", "/a/b c"), ("/x:y", "/x:y")] {
            assert!(matches!(Place::new(Path::new(text)).expect("a place"), Place::Local(path) if path == Path::new(folder)), "{text}");
        }
        assert!(Place::new(Path::new("file://a/b")).expect_err("a host").to_string().contains("`file:///data/cache`"));
    }
}
