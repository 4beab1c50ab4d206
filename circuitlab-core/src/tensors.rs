//! Safetensors files: mapped for reading, written whole.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};
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

/// Writes tensors to a file, atomically. They may be many times what is left of the memory: a piece of one is copied at a time.
///
/// # Errors
/// Types that safetensors has not, and what the file system returns.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let with_type = |(name, tensor): &'_ (String, Tensor)| -> Result<Dtype> {
        dtype_of(tensor.kind()).ok_or_else(|| Error::Invalid(format!("tensor `{name}` has the unsupported type {:?}", tensor.kind())))
    };
    let mut order = tensors.iter().map(|named| Ok((with_type(named)?, named))).collect::<Result<Vec<_>>>()?;
    // As the safetensors package does: wider types first, so that all are aligned.
    order.sort_by(|(left, (left_name, _)), (right, (right_name, _))| right.cmp(left).then(left_name.cmp(right_name)));
    let header = header(&order).map_err(|error| Error::Invalid(format!("cannot lay out `{}`: {error}", path.display())))?;
    files::write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        order.iter().try_for_each(|(_, (_, tensor))| write_pieces(out, tensor))
    })
}

/// What stands before the numbers, but for its length: the place of each tensor after it. Padded so that they begin at a multiple of 8.
fn header(order: &[(Dtype, &(String, Tensor))]) -> std::result::Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut begin = 0;
    let place = |(dtype, (name, tensor)): &(Dtype, &(String, Tensor))| {
        let end = begin + tensor.numel() * tensor.kind().elt_size_in_bytes();
        let shape = tensor.size().iter().map(|size| *size as usize).collect();
        let info = TensorInfo { dtype: *dtype, shape, data_offsets: (begin, end) };
        begin = end;
        (name.clone(), info)
    };
    let mut header = serde_json::to_vec(&Metadata::new(None, order.iter().map(place).collect())?)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

/// Writes a tensor's bytes, some rows at a time.
fn write_pieces(out: &mut dyn Write, tensor: &Tensor) -> io::Result<()> {
    const PIECE_BYTES: usize = 1 << 24;
    let size = tensor.size();
    let count = size.first().map_or(1, |rows| *rows as usize);
    let row_bytes = tensor.numel() * tensor.kind().elt_size_in_bytes() / count.max(1);
    let at_a_time = (PIECE_BYTES / row_bytes.max(1)).max(1);
    for start in (0..count).step_by(at_a_time) {
        let rows = at_a_time.min(count - start);
        let piece = if size.is_empty() { Ok(tensor.shallow_clone()) } else { tensor.f_narrow(0, start as i64, rows as i64) };
        let piece = piece.map_err(Error::from).and_then(|piece| bytes(&piece)).map_err(io::Error::other)?;
        out.write_all(&piece)?;
    }
    Ok(())
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
