//! Files that are read.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{SafeTensorError, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};

use super::kinds::kind_of;
use super::{TensorLayout, WrittenRows, pieces};
use crate::{Error, Result};

/// A safetensors file, mapped into memory and checked once.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
}

impl TensorFile {
    /// Maps a file and checks its header against its length.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short or is no safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        #[allow(unsafe_code, reason = "mapping a file has no safe form")]
        // SAFETY: the mapping is read only. Another process that shortens the file while it is mapped ends this one with
        // SIGBUS; model and CLT folders are replaced by rename and never shortened in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("read", path))?;
        let opened = Self { path: path.to_path_buf(), map };
        opened.parse()?;
        Ok(opened)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors.
    ///
    /// # Errors
    /// A damaged header.
    pub fn names(&self) -> Result<Vec<String>> {
        Ok(self.parse()?.names().into_iter().map(ToOwned::to_owned).collect())
    }

    /// A text of the header's `__metadata__`, where it has one of that name.
    ///
    /// # Errors
    /// A damaged header.
    pub fn metadata(&self, name: &str) -> Result<Option<String>> {
        let (_, header) = SafeTensors::read_metadata(&self.map).map_err(|error| self.unreadable(&error))?;
        Ok(header.metadata().as_ref().and_then(|texts| texts.get(name).cloned()))
    }

    /// Whether it holds a tensor of that name.
    ///
    /// # Errors
    /// A damaged header.
    pub fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.parse()?.tensor(name).is_ok())
    }

    /// A tensor's shape and raw bytes, little endian.
    ///
    /// # Errors
    /// A tensor that is not there.
    pub fn raw(&self, name: &str) -> Result<(Vec<i64>, &[u8])> {
        let view = self.view(name)?;
        Ok((shape(&view), view.data()))
    }

    /// The name of a tensor's type as the file's header has it, such as `BF16`.
    ///
    /// # Errors
    /// A tensor that is not there.
    pub fn dtype(&self, name: &str) -> Result<String> {
        Ok(format!("{:?}", self.view(name)?.dtype()))
    }

    /// A tensor's name, shape and type.
    ///
    /// # Errors
    /// A tensor that is not there, or of a type that libtorch has not.
    pub fn layout(&self, name: &str) -> Result<TensorLayout> {
        let view = self.view(name)?;
        let kind = kind_of(view.dtype())
            .ok_or_else(|| Error::format(&self.path, format!("tensor `{name}` has the unsupported type {:?}", view.dtype())))?;
        Ok(TensorLayout::new(name, &shape(&view), kind))
    }

    /// Reads a tensor into a device's memory, in the given type, or in its own where none is given.
    ///
    /// # Errors
    /// A tensor that is not there, or of a type that libtorch has not.
    pub fn tensor(&self, name: &str, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let rows = self.layout(name)?.rows();
        self.rows(name, 0..rows, kind, device)
    }

    /// Reads rows of a tensor, a piece at a time, so that there is never much more than these rows in memory. A tensor without axes has one
    /// row.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), and rows that are not there.
    pub fn rows(&self, name: &str, rows: Range<i64>, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let layout = self.layout(name)?;
        let data = self.row_bytes(name, &rows)?;
        let count = rows.end - rows.start;
        let sized = |count: i64| match layout.shape.split_first() {
            Some((_, rest)) => [&[count], rest].concat(),
            None => Vec::new(),
        };
        let read = || -> Result<Tensor> {
            let whole = Tensor::f_empty(sized(count), (kind.unwrap_or(layout.kind), device))?;
            let by_rows = if layout.shape.is_empty() { whole.f_view([1])? } else { whole.shallow_clone() };
            for (at, length) in pieces(count, layout.row_bytes()) {
                let place = at as usize * layout.row_bytes()..(at + length) as usize * layout.row_bytes();
                let piece = Tensor::f_from_data_size(&data[place.clone()], &sized(length), layout.kind)?;
                by_rows.f_narrow(0, at, length)?.f_copy_(&piece)?;
                self.release(&data[place]);
            }
            Ok(whole)
        };
        read().map_err(|error| Error::format(&self.path, format!("tensor `{name}`: {error}")))
    }

    /// Compares rows with the checksum that was taken as they were written.
    ///
    /// # Errors
    /// Rows that are not there or are not those that were written.
    pub fn check(&self, written: &WrittenRows) -> Result<()> {
        let WrittenRows { tensor, first, rows, crc32c } = written;
        let data = self.row_bytes(tensor, &(*first..first.saturating_add(*rows)))?;
        let mut found = 0;
        for piece in data.chunks(super::PIECE_BYTES) {
            found = crc32c::crc32c_append(found, piece);
            self.release(piece);
        }
        if found == *crc32c {
            return Ok(());
        }
        let end = first + rows;
        let message = format!("tensor `{tensor}` is damaged: rows {first}..{end} have CRC-32C {found:08x}, {crc32c:08x} was written");
        Err(Error::format(&self.path, message))
    }

    fn row_bytes(&self, name: &str, rows: &Range<i64>) -> Result<&[u8]> {
        let (shape, data) = self.raw(name)?;
        let count = shape.first().copied().unwrap_or(1);
        if rows.start < 0 || rows.start > rows.end || rows.end > count {
            let message = format!("tensor `{name}` has {count} rows, and rows {}..{} are needed", rows.start, rows.end);
            return Err(Error::format(&self.path, message));
        }
        let row_bytes = if count == 0 { 0 } else { data.len() / count as usize };
        Ok(&data[rows.start as usize * row_bytes..rows.end as usize * row_bytes])
    }

    /// Gives back the memory of bytes of [`raw`](Self::raw) that have been read, so that a large file is never in memory whole. Others,
    /// and systems that cannot, are left alone.
    pub fn release(&self, data: &[u8]) {
        let first = (data.as_ptr() as usize).wrapping_sub(self.map.as_ptr() as usize);
        if first.checked_add(data.len()).is_some_and(|end| end <= self.map.len()) {
            self.drop_pages(first, data.len());
        }
    }

    #[cfg(unix)]
    fn drop_pages(&self, first: usize, length: usize) {
        #[allow(unsafe_code, reason = "dropping pages has no safe form")]
        // SAFETY: the mapping is read only and of a file, so that dropped pages are read again from the file when they are touched.
        let dropped = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, length) };
        // Where that fails it costs memory and nothing else.
        drop(dropped);
    }

    #[cfg(not(unix))]
    fn drop_pages(&self, _: usize, _: usize) {}

    fn view(&self, name: &str) -> Result<TensorView<'_>> {
        self.parse()?.tensor(name).map_err(|_| {
            let names = self.names().unwrap_or_default();
            let hint = crate::error::nearest(name, names.iter().map(String::as_str))
                .map_or_else(String::new, |near| format!(", the nearest is `{near}`"));
            Error::format(&self.path, format!("it has no tensor `{name}`{hint}"))
        })
    }

    fn parse(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &SafeTensorError) -> Error {
        Error::format(&self.path, format!("not a whole safetensors file: {error}"))
    }
}

fn shape(view: &TensorView<'_>) -> Vec<i64> {
    view.shape().iter().map(|size| *size as i64).collect()
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::Dtype;

    use super::super::kinds::{KINDS, dtype_of};
    use super::super::{bytes, write};
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("circuitlab-{}-{name}.safetensors", std::process::id()))
    }

    #[test]
    fn every_type_comes_back_bit_for_bit() {
        let path = scratch("types");
        let tensors: Vec<(String, Tensor)> = KINDS
            .iter()
            .map(|(dtype, kind)| (format!("{dtype:?}"), Tensor::arange(6, (Kind::Float, Device::Cpu)).to_kind(*kind).view([2, 3])))
            .collect();
        write(&path, &tensors).expect("writes");
        let file = TensorFile::open(&path).expect("opens");
        for (name, tensor) in &tensors {
            let back = file.tensor(name, None, Device::Cpu).expect("is there");
            assert_eq!((back.kind(), &back), (tensor.kind(), tensor));
            assert_eq!(&file.dtype(name).expect("is there"), name);
        }
        assert!(file.tensor("F33", None, Device::Cpu).expect_err("no such tensor").to_string().contains("the nearest is `F32`"));
        std::fs::remove_file(path).expect("clean up");
    }

    #[test]
    fn a_file_is_that_of_the_package_whatever_the_shapes() {
        let path = scratch("shapes");
        let numbers =
            |shape: &[i64], kind| Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).view(shape).to_kind(kind);
        let tensors: Vec<(String, Tensor)> = [
            ("large", numbers(&[5, 1100, 1000], Kind::Float)),
            ("turned", numbers(&[7, 900, 1000], Kind::Float).transpose(0, 1)),
            ("one", numbers(&[], Kind::Double)),
            ("none", numbers(&[0, 3], Kind::Float)),
            ("empty rows", numbers(&[3, 0], Kind::Int64)),
            ("bytes", numbers(&[13], Kind::Int8)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into();
        write(&path, &tensors).expect("writes");
        let blobs: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, tensor)| {
                let shape = tensor.size().iter().map(|size| *size as usize).collect();
                (name.as_str(), dtype_of(tensor.kind()).expect("known"), shape, bytes(tensor).expect("copies"))
            })
            .collect();
        let views = blobs.iter().map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).expect("fits")));
        let want = safetensors::serialize(views, None).expect("lays out");
        assert!(std::fs::read(&path).expect("reads") == want, "not the bytes that the package writes");
        std::fs::remove_file(path).expect("clean up");
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a half-written file is what this test is about")]
    fn a_cut_file_is_refused() {
        let path = scratch("cut");
        write(&path, &[("a".into(), Tensor::zeros([64], (Kind::Float, Device::Cpu)))]).expect("writes");
        let whole = std::fs::read(&path).expect("reads");
        for length in [0, 4, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).expect("cuts");
            assert!(TensorFile::open(&path).is_err(), "{length}");
        }
        std::fs::remove_file(path).expect("clean up");
    }
}
