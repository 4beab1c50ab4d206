//! Rows at their places.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::layout::Place;
use super::{bytes, pieces};
use crate::{Error, Result};

/// A file that rows are written into. Other processes may write other rows of it meanwhile.
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    file: File,
    places: HashMap<String, Place>,
    written: Vec<WrittenRows>,
}

/// Rows of a tensor that a process wrote one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenRows {
    /// The tensor's name.
    pub tensor: String,
    /// The first row.
    pub first: i64,
    /// How many.
    pub rows: i64,
    /// The CRC-32C of their bytes.
    pub crc32c: u32,
}

impl TensorWriter {
    pub(super) fn new(path: PathBuf, file: File, places: HashMap<String, Place>) -> Self {
        Self { path, file, places, written: Vec::new() }
    }

    /// Writes `rows` as the rows from `first` on, a piece at a time.
    ///
    /// # Errors
    /// A tensor that the file has not, rows of another type or shape, and what the file system returns.
    pub fn rows(&mut self, name: &str, first: i64, rows: &Tensor) -> Result<()> {
        let Place { begin, layout } =
            self.places.get(name).cloned().ok_or_else(|| Error::format(&self.path, format!("it has no room for a tensor `{name}`")))?;
        let size = rows.size();
        let count = size.first().copied().unwrap_or(1);
        let fits = size.len() == layout.shape.len() && size.iter().skip(1).eq(layout.shape.iter().skip(1));
        if !fits || rows.kind() != layout.kind || first < 0 || first + count > layout.rows() {
            let (shape, kind) = (&layout.shape, layout.kind);
            return Err(Error::Invalid(format!(
                "tensor `{name}` has shape {shape:?} of {kind:?}, which rows {size:?} of {:?} from row {first} on do not fit",
                rows.kind()
            )));
        }
        if count == 0 {
            return Ok(());
        }
        let mut crc = self.continued(name, first, count);
        for (at, length) in pieces(count, layout.row_bytes()) {
            let data = if size.is_empty() { bytes(rows)? } else { bytes(&rows.f_narrow(0, at, length)?)? };
            crc = crc32c::crc32c_append(crc, &data);
            let place = begin + (first + at) as u64 * layout.row_bytes() as u64;
            let done = self.file.seek(SeekFrom::Start(place)).and_then(|_| self.file.write_all(&data));
            done.map_err(Error::io("write", &self.path))?;
        }
        if let Some(written) = self.written.last_mut() {
            written.crc32c = crc;
        }
        Ok(())
    }

    /// Writes numbers in place of those from number `first` of the whole tensor on, in any order, such as rows that come out of order or that are
    /// too long to have in memory. They go into no checksum; those that never come are holes where the file system has holes.
    ///
    /// # Errors
    /// A tensor that the file has not, numbers of another type or more than it has, and what the file system returns.
    pub fn numbers(&mut self, name: &str, first: i64, numbers: &Tensor) -> Result<()> {
        let place = self.places.get(name).ok_or_else(|| Error::format(&self.path, format!("it has no room for a tensor `{name}`")))?;
        let layout = &place.layout;
        let (count, all) = (numbers.numel() as i64, layout.shape.iter().product::<i64>());
        if numbers.kind() != layout.kind || first < 0 || first + count > all {
            return Err(Error::Invalid(format!(
                "tensor `{name}` has {all} numbers of {:?}, which {count} of {:?} from number {first} on do not fit",
                layout.kind,
                numbers.kind()
            )));
        }
        let at = place.begin + first as u64 * layout.kind.elt_size_in_bytes() as u64;
        let data = bytes(numbers)?;
        let done = self.file.seek(SeekFrom::Start(at)).and_then(|_| self.file.write_all(&data));
        done.map_err(Error::io("write", &self.path))
    }

    /// Enters rows, with the last ones where they follow upon these, and gives the checksum of what was there.
    fn continued(&mut self, name: &str, first: i64, count: i64) -> u32 {
        if let Some(at) = self.written.iter().position(|known| known.tensor == name && known.first + known.rows == first) {
            let mut known = self.written.remove(at);
            known.rows += count;
            let crc = known.crc32c;
            self.written.push(known);
            return crc;
        }
        self.written.push(WrittenRows { tensor: name.to_owned(), first, rows: count, crc32c: 0 });
        0
    }

    /// Waits until all of it is on the disk, and says what was written.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn finish(self) -> Result<Vec<WrittenRows>> {
        self.file.sync_all().map_err(Error::io("write", &self.path))?;
        Ok(self.written)
    }
}
