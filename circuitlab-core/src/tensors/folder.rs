//! Several files at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::{FileLayout, TensorWriter, WrittenRows};
use crate::{Error, Result};

/// The files of a folder, to write rows into. Other processes may write other rows of them meanwhile.
#[derive(Debug)]
pub struct FolderWriter {
    folder: PathBuf,
    files: BTreeMap<PathBuf, TensorWriter>,
}

impl FolderWriter {
    /// Opens files that are there with their headers and lengths.
    ///
    /// # Errors
    /// As [`FileLayout::open`].
    pub fn open(folder: &Path, files: &[FileLayout]) -> Result<Self> {
        let open = |layout: &FileLayout| Ok((layout.file.clone(), layout.open(folder)?));
        Ok(Self { folder: folder.to_path_buf(), files: files.iter().map(open).collect::<Result<_>>()? })
    }

    /// Writes `rows` as the rows from `first` on of a file's tensor.
    ///
    /// # Errors
    /// A file that is none of the folder's; else as [`TensorWriter::rows`].
    pub fn rows(&mut self, file: &Path, tensor: &str, first: i64, rows: &Tensor) -> Result<()> {
        let unknown = || Error::format(&self.folder, format!("it has no file `{}` to write into", file.display()));
        self.files.get_mut(file).ok_or_else(unknown)?.rows(tensor, first, rows)
    }

    /// Waits until all of it is on the disk, and says what was written of each file.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn finish(self) -> Result<BTreeMap<PathBuf, Vec<WrittenRows>>> {
        self.files.into_iter().map(|(file, writer)| Ok((file, writer.finish()?))).collect()
    }
}
