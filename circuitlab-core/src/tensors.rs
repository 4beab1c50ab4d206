//! Safetensors files: mapped for reading, written whole.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, files};

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

    /// Reads a tensor into a device's memory, in the given type, or in its own where none is given.
    ///
    /// # Errors
    /// A tensor that is not there, or of a type that libtorch has not.
    pub fn tensor(&self, name: &str, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let view = self.view(name)?;
        let stored = kind_of(view.dtype())
            .ok_or_else(|| Error::format(&self.path, format!("tensor `{name}` has the unsupported type {:?}", view.dtype())))?;
        let read = || Tensor::f_from_data_size(view.data(), &shape(&view), stored)?.f_to_device(device)?.f_to_kind(kind.unwrap_or(stored));
        let tensor = read().map_err(|error| Error::format(&self.path, format!("tensor `{name}`: {}", Error::from(error))))?;
        self.release(view.data());
        Ok(tensor)
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
        SafeTensors::deserialize(&self.map).map_err(|error| Error::format(&self.path, format!("not a whole safetensors file: {error}")))
    }
}

/// Writes tensors to a file, atomically.
///
/// # Errors
/// Types that safetensors has not, and what the file system returns.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let blobs = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = dtype_of(tensor.kind())
                .ok_or_else(|| Error::Invalid(format!("tensor `{name}` has the unsupported type {:?}", tensor.kind())))?;
            let shape = tensor.size().iter().map(|size| *size as usize).collect::<Vec<_>>();
            Ok((name, dtype, shape, bytes(tensor)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let views = blobs
        .iter()
        .map(|(name, dtype, shape, data)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), data).map_err(|error| Error::Invalid(error.to_string()))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let whole =
        safetensors::serialize(views, None).map_err(|error| Error::Invalid(format!("cannot lay out `{}`: {error}", path.display())))?;
    files::write_atomic(path, |out| out.write_all(&whole))
}

/// The bytes of a tensor, row by row, little endian.
///
/// # Errors
/// libtorch's.
pub fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut data = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut data, tensor.numel())?;
    Ok(data)
}

fn shape(view: &TensorView<'_>) -> Vec<i64> {
    view.shape().iter().map(|size| *size as i64).collect()
}

const KINDS: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find_map(|(stored, kind)| (*stored == dtype).then_some(*kind))
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    KINDS.iter().find_map(|(dtype, known)| (*known == kind).then_some(*dtype))
}

#[cfg(test)]
mod tests {
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
