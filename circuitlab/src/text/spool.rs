//! Long lists of plain numbers that live in unnamed temporary files: as much as the disk holds, and as little memory as the system likes.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::marker::PhantomData;

use bytemuck::Pod;
use memmap2::Mmap;

use crate::Result;

const BUFFER_BYTES: usize = 1 << 20;

/// A list that is being written.
pub(super) struct SpoolWriter<T> {
    /// None before the first item.
    file: Option<BufWriter<File>>,
    len: usize,
    of: PhantomData<T>,
}

/// A list that is whole. It is read as a slice.
pub(super) struct Spool<T> {
    /// None for an empty list, which cannot be mapped.
    map: Option<Mmap>,
    of: PhantomData<T>,
}

impl<T: Pod> SpoolWriter<T> {
    pub(super) fn new() -> Self {
        Self { file: None, len: 0, of: PhantomData }
    }

    /// How many items it has.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn extend(&mut self, items: &[T]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::with_capacity(BUFFER_BYTES, tempfile::tempfile().map_err(failed("create"))?)),
        };
        file.write_all(bytemuck::cast_slice(items)).map_err(failed("write"))?;
        self.len += items.len();
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Spool<T>> {
        let Some(file) = self.file else { return Ok(Spool::default()) };
        let file = file.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        #[allow(unsafe_code, reason = "mapping a file has no safe form")]
        // SAFETY: the file has no name and this was its only handle, so nothing changes or shortens it while it is mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(failed("read"))?;
        Ok(Spool { map: Some(map), of: PhantomData })
    }
}

/// The folder is named, since another can be chosen.
fn failed(action: &'static str) -> impl FnOnce(std::io::Error) -> circuitlab_core::Error {
    let place = std::env::temp_dir().join("(a temporary file; TMPDIR chooses another folder)");
    circuitlab_core::Error::io(action, place)
}

impl<T: Pod> Spool<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        // A mapping begins at a page, so it is aligned; only whole items were written.
        self.map.as_ref().and_then(|map| bytemuck::try_cast_slice(map).ok()).unwrap_or_default()
    }
}

impl<T> Default for Spool<T> {
    fn default() -> Self {
        Self { map: None, of: PhantomData }
    }
}

impl<T: Pod> fmt::Debug for Spool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spool({} items)", self.as_slice().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut writer = SpoolWriter::new();
        for number in 0..100_000_u64 {
            writer.extend(&[[number, number + 1]]).expect("writes");
        }
        writer.extend(&[]).expect("nothing");
        assert_eq!(writer.len(), 100_000);
        let spool = writer.finish().expect("maps");
        assert!(spool.as_slice().iter().enumerate().all(|(place, item)| *item == [place as u64, place as u64 + 1]));
        assert_eq!(spool.as_slice().len(), 100_000);
        assert!(SpoolWriter::<u32>::new().finish().expect("nothing").as_slice().is_empty());
    }
}
