//! Rows that are computed, in an unnamed temporary file: a graph may have more of them than there is memory.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::Result;

/// What a row explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOf {
    /// A target, by its place.
    Logit(usize),
    /// A feature, by its place among the active ones.
    Feature(usize),
}

/// Rows of one width, in the order in which they came.
#[derive(Debug)]
pub(super) struct RowStore {
    file: File,
    width: usize,
    rows: Vec<RowOf>,
    buffer: Vec<f32>,
}

impl RowStore {
    /// An empty one, in a file that has no name in `folder`.
    ///
    /// # Errors
    /// What the file system returns.
    pub(super) fn new(folder: &Path, width: usize) -> Result<Self> {
        let file = tempfile::tempfile_in(folder).map_err(circuitlab_core::Error::io("write rows to a temporary file in", folder))?;
        Ok(Self { file, width, rows: Vec::new(), buffer: Vec::new() })
    }

    /// Adds rows: `[rows, width]`.
    ///
    /// # Errors
    /// What the file system returns.
    pub(super) fn push(&mut self, of: &[RowOf], rows: &Tensor) -> Result<()> {
        let rows = rows.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        self.buffer.resize(of.len() * self.width, 0.0);
        rows.f_copy_data(&mut self.buffer, of.len() * self.width)?;
        let at = (self.rows.len() * self.width * size_of::<f32>()) as u64;
        self.file.write_all_at(bytemuck::cast_slice(&self.buffer), at).map_err(failed("write"))?;
        self.rows.extend_from_slice(of);
        Ok(())
    }

    /// What the rows explain, in their order.
    pub(super) fn rows(&self) -> &[RowOf] {
        &self.rows
    }

    /// Reads a row by its place.
    ///
    /// # Errors
    /// What the file system returns.
    pub(super) fn read(&self, place: usize, row: &mut Vec<f32>) -> Result<()> {
        row.resize(self.width, 0.0);
        let at = (place * self.width * size_of::<f32>()) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(row), at).map_err(failed("read"))
    }
}

fn failed(verb: &'static str) -> impl FnOnce(std::io::Error) -> crate::Error {
    move |error| circuitlab_core::Error::io(verb, Path::new("temporary file of rows"))(error).into()
}
