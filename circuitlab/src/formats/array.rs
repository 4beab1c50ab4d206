//! Arrays in files, of which pieces are read.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use circuitlab_core::Error as CoreError;
use circuitlab_core::tensors::TensorFile;
use tch::{Device, Kind, Tensor};
use tempfile::TempPath;

use crate::Result;

/// What the only tensor of a file is called that an array was unpacked into.
pub(super) const UNPACKED: &str = "numbers";

/// Where the numbers of an array lie: a tensor of a safetensors file.
#[derive(Clone)]
struct Bytes {
    file: Arc<TensorFile>,
    tensor: String,
    /// The file and the name that messages have.
    shown: (PathBuf, String),
    /// Keeps the file that an array was unpacked into for as long as it is read.
    _unpacked: Option<Arc<TempPath>>,
}

/// An array of a file, or a part of it with axes in another order. Nothing is read before it is asked for.
#[derive(Clone)]
pub(super) struct Array {
    bytes: Bytes,
    kind: Kind,
    /// The first number.
    offset: i64,
    shape: Vec<i64>,
    /// How many numbers apart neighbours along each axis lie.
    strides: Vec<i64>,
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, name) = &self.bytes.shown;
        write!(f, "`{name}` {:?} of {}", self.shape, path.display())
    }
}

/// How many numbers apart neighbours lie where the last axis lies in one piece.
fn dense(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1_i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// The bytes of an array, where they can be counted.
pub(super) fn byte_count(shape: &[i64], kind: Kind) -> Option<usize> {
    let numbers = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(usize::try_from(*size).ok()?))?;
    numbers.checked_mul(kind.elt_size_in_bytes()).filter(|bytes| i64::try_from(*bytes).is_ok())
}

impl Array {
    /// A tensor of a safetensors file.
    pub(super) fn of(file: &Arc<TensorFile>, name: &str) -> Result<Self> {
        let layout = file.layout(name)?;
        let array = Self {
            bytes: Bytes {
                file: Arc::clone(file),
                tensor: name.to_owned(),
                shown: (file.path().to_path_buf(), name.to_owned()),
                _unpacked: None,
            },
            kind: layout.kind,
            offset: 0,
            strides: dense(&layout.shape),
            shape: layout.shape,
        };
        array.is_float()?;
        Ok(array)
    }

    /// An array that was unpacked into a safetensors file as its only tensor, a list; the first axis lies in one piece where `turned`.
    pub(super) fn unpacked(file: TempPath, shown: (PathBuf, String), shape: Vec<i64>, turned: bool) -> Result<Self> {
        let opened = TensorFile::open(&file)?;
        let layout = opened.layout(UNPACKED)?;
        let strides = if turned {
            let reversed: Vec<i64> = shape.iter().rev().copied().collect();
            dense(&reversed).into_iter().rev().collect()
        } else {
            dense(&shape)
        };
        let bytes = Bytes { file: Arc::new(opened), tensor: UNPACKED.to_owned(), shown, _unpacked: Some(Arc::new(file)) };
        let array = Self { bytes, kind: layout.kind, offset: 0, shape, strides };
        if byte_count(&array.shape, array.kind) != byte_count(&layout.shape, layout.kind) {
            return Err(array.wrong("its bytes are not those of its shape"));
        }
        Ok(array)
    }

    fn is_float(&self) -> Result<()> {
        if matches!(self.kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            return Ok(());
        }
        Err(self.wrong(&format!("it is of {:?}, expected floats", self.kind)))
    }

    /// An error about this array.
    pub(super) fn wrong(&self, why: &str) -> crate::Error {
        let (path, name) = &self.bytes.shown;
        CoreError::format(path, format!("tensor `{name}`: {why}")).into()
    }

    pub(super) fn shape(&self) -> &[i64] {
        &self.shape
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The sizes of an array of `N` axes, none of them empty, which have these names.
    pub(super) fn sizes<const N: usize>(&self, names: [&str; N]) -> Result<[i64; N]> {
        match <[i64; N]>::try_from(&*self.shape) {
            Ok(sizes) if sizes.iter().all(|size| *size > 0) => Ok(sizes),
            _ => Err(self.wrong(&format!("it has shape {:?}, expected [{}]", self.shape, names.join(", ")))),
        }
    }

    /// Checks its shape.
    pub(super) fn has_shape(&self, axes: &[(&str, i64)]) -> Result<()> {
        if self.shape.iter().eq(axes.iter().map(|(_, size)| size)) {
            return Ok(());
        }
        let named: Vec<String> = axes.iter().map(|(name, size)| format!("{name}={size}")).collect();
        Err(self.wrong(&format!("it has shape {:?}, expected [{}]", self.shape, named.join(", "))))
    }

    /// The same with its axes in this order.
    pub(super) fn permuted(&self, order: &[usize]) -> Self {
        let pick = |of: &[i64]| order.iter().filter_map(|axis| of.get(*axis).copied()).collect();
        Self { shape: pick(&self.shape), strides: pick(&self.strides), ..self.clone() }
    }

    /// Some places of an axis.
    pub(super) fn narrow(&self, axis: usize, range: Range<i64>) -> Result<Self> {
        match self.shape.get(axis) {
            Some(size) if range.start >= 0 && range.start <= range.end && range.end <= *size => {
                let mut narrowed = self.clone();
                narrowed.offset += range.start * self.strides[axis];
                narrowed.shape[axis] = range.end - range.start;
                Ok(narrowed)
            }
            _ => Err(self.wrong(&format!("it has shape {:?}, and {}..{} of axis {axis} are needed", self.shape, range.start, range.end))),
        }
    }

    /// One place of an axis, which is gone.
    pub(super) fn select(&self, axis: usize, place: i64) -> Result<Self> {
        let mut selected = self.narrow(axis, place..place + 1)?;
        selected.shape.remove(axis);
        selected.strides.remove(axis);
        Ok(selected)
    }

    /// With one more axis, of one place.
    pub(super) fn unsqueezed(&self, axis: usize) -> Self {
        let mut wider = self.clone();
        wider.shape.insert(axis, 1);
        wider.strides.insert(axis, 1);
        wider
    }

    /// Reads all of it, in its own type.
    pub(super) fn read(&self) -> Result<Tensor> {
        // In the order in which it lies in the file, and turned in memory.
        let mut order: Vec<usize> = (0..self.shape.len()).collect();
        order.sort_by_key(|axis| (std::cmp::Reverse(self.strides[*axis]), *axis));
        let lying = self.permuted(&order);
        let data = lying.gather()?;
        let read = || -> Result<Tensor, CoreError> {
            let shape: Vec<i64> = lying.shape.clone();
            let tensor = if data.is_empty() {
                Tensor::f_empty(&shape, (self.kind, Device::Cpu))?
            } else {
                Tensor::f_from_data_size(&data, &shape, self.kind)?
            };
            let back: Vec<i64> =
                (0..order.len()).filter_map(|axis| order.iter().position(|from| *from == axis)).map(|place| place as i64).collect();
            Ok(tensor.f_permute(back)?.f_contiguous()?)
        };
        read().map_err(|error| self.wrong(&error.to_string()))
    }

    /// Copies its numbers out, the last axis fastest.
    fn gather(&self) -> Result<Vec<u8>> {
        let size = self.kind.elt_size_in_bytes();
        let all = self.bytes.file.raw(&self.bytes.tensor)?.1;
        let count = byte_count(&self.shape, self.kind).ok_or_else(|| self.wrong("it is too large"))?;
        let mut data = Vec::new();
        data.try_reserve_exact(count).map_err(|_| self.wrong(&format!("there is no memory for {count} bytes of it")))?;
        if count == 0 {
            return Ok(data);
        }
        // Axes at the end that lie in one piece are copied at once.
        let mut run = 1;
        let mut outer = self.shape.len();
        while outer > 0 && (self.strides[outer - 1] == run || self.shape[outer - 1] == 1) {
            run *= self.shape[outer - 1];
            outer -= 1;
        }
        let mut places = vec![0; outer];
        let [mut from, mut to] = [all.len(), 0];
        loop {
            let first = self.offset + places.iter().zip(&self.strides).map(|(place, stride)| place * stride).sum::<i64>();
            let (start, end) = (first as usize * size, (first + run) as usize * size);
            (from, to) = (from.min(start), to.max(end));
            let bytes = all.get(start..end);
            data.extend_from_slice(bytes.ok_or_else(|| self.wrong("its numbers go beyond the end of the file"))?);
            let Some(axis) = (0..outer).rev().find(|axis| places[*axis] + 1 < self.shape[*axis]) else { break };
            places[axis] += 1;
            places[axis + 1..].fill(0);
        }
        self.bytes.file.release(all.get(from..to).unwrap_or_default());
        Ok(data)
    }
}

/// Arrays that follow each other along the axis of features.
#[derive(Debug, Clone)]
pub(super) struct Parts(pub(super) Vec<Array>);

impl Parts {
    /// The numbers of some features, `[features, ..]`.
    pub(super) fn rows(&self, features: Range<i64>) -> Result<Tensor> {
        let mut first = 0;
        let mut found = Vec::new();
        for part in &self.0 {
            let count = part.shape().first().copied().unwrap_or(0);
            let (start, end) = (features.start.max(first) - first, features.end.min(first + count) - first);
            if start < end {
                found.push(part.narrow(0, start..end)?.read()?);
            }
            first += count;
        }
        joined(&found)
    }

    /// The same of all features, at some places of the second axis: `[features, places, ..]`.
    pub(super) fn columns(&self, places: &Range<i64>) -> Result<Tensor> {
        joined(&self.0.iter().map(|part| part.narrow(1, places.clone())?.read()).collect::<Result<Vec<_>>>()?)
    }
}

/// Tensors one after the other.
pub(super) fn joined(tensors: &[Tensor]) -> Result<Tensor> {
    match tensors {
        [one] => Ok(one.shallow_clone()),
        _ => Ok(Tensor::f_cat(tensors, 0).map_err(CoreError::from)?),
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::tensors;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_part_in_any_order_is_what_libtorch_gives(
            (a, b, c) in (1_i64..5, 1_i64..5, 1_i64..5),
            turn in 0_usize..6,
            axis in 0_usize..3,
            cut in (0.0..1.0, 0.0..1.0),
            turned: bool,
        ) {
            let numbers = Tensor::arange(a * b * c, (Kind::Float, Device::Cpu)).view([a, b, c]);
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("a.safetensors");
            tensors::write(&path, &[("a".to_owned(), numbers.copy())]).expect("writes");
            let array = if turned {
                let numbers = numbers.permute([2, 1, 0]).contiguous().view([-1]);
                let file = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
                tensors::write(&file, &[(UNPACKED.to_owned(), numbers)]).expect("writes");
                Array::unpacked(file, (path.clone(), "a".to_owned()), vec![a, b, c], true).expect("fits")
            } else {
                Array::of(&Arc::new(TensorFile::open(&path).expect("opens")), "a").expect("is there")
            };
            let order = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][turn];
            let want = numbers.permute(order.map(|axis| axis as i64));
            let size = want.size()[axis];
            let (from, to) = ((cut.0 * size as f64) as i64, (cut.1 * (size + 1) as f64) as i64);
            let range = from.min(to)..to.max(from).min(size);
            let got = array.permuted(&order).narrow(axis, range.clone()).expect("inside").read().expect("reads");
            prop_assert_eq!(got, want.narrow(axis as i64, range.start, range.end - range.start));
            let got = array.permuted(&order).select(axis, size - 1).expect("inside").unsqueezed(0).read().expect("reads");
            prop_assert_eq!(got, want.select(axis as i64, size - 1).unsqueeze(0));
        }
    }
}
