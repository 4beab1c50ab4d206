//! Where every tensor of a file lies, before there is a file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Kind, Tensor};

use super::kinds::dtype_of;
use super::writer::TensorWriter;
use crate::{Error, Result};

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLayout {
    /// Its name, unique in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its type.
    pub kind: Kind,
}

impl TensorLayout {
    /// A tensor of that name.
    pub fn new(name: impl Into<String>, shape: &[i64], kind: Kind) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), kind }
    }

    /// That of a tensor.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        Self::new(name, &tensor.size(), tensor.kind())
    }

    /// How long its first axis is; one row where it has none.
    pub fn rows(&self) -> i64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.shape.iter().skip(1).product::<i64>() as usize * self.kind.elt_size_in_bytes()
    }
}

/// A safetensors file that is to be. Its header follows from names, shapes and types, so that every process that knows them knows where
/// each row lies, and several can fill one file, each with its own rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLayout {
    /// The file, as seen from its folder.
    pub file: PathBuf,
    /// What it holds.
    pub tensors: Vec<TensorLayout>,
    /// A name and a text of the header's `__metadata__`, which holds no more than that one, so that its bytes are the same each time.
    pub metadata: Option<(String, String)>,
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) begin: u64,
    pub(super) layout: TensorLayout,
}

impl FileLayout {
    /// A file of these tensors.
    pub fn new(file: impl Into<PathBuf>, tensors: Vec<TensorLayout>) -> Self {
        Self { file: file.into(), tensors, metadata: None }
    }

    /// The same with a text in its header, which [`TensorFile::metadata`](super::TensorFile::metadata) gives back.
    #[must_use]
    pub fn with_metadata(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.metadata = Some((name.into(), text.into()));
        self
    }

    /// Makes the file with its header and its length. Until rows are written its numbers are zeros.
    ///
    /// # Errors
    /// Types that safetensors has not, a name that is there twice, and what the file system returns.
    pub fn create(&self, folder: &Path) -> Result<()> {
        let path = folder.join(&self.file);
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        self.begin(&mut file, &path)
    }

    /// Opens the file, which is there with its header and its length, to write rows of it.
    ///
    /// # Errors
    /// A file that is not there or of another length.
    pub fn open(&self, folder: &Path) -> Result<TensorWriter> {
        let path = folder.join(&self.file);
        let file = File::options().write(true).open(&path).map_err(Error::io("write", &path))?;
        let (_, places, length) = self.places()?;
        let found = file.metadata().map_err(Error::io("read", &path))?.len();
        if found != length {
            return Err(Error::format(path, format!("expected a file of {length} bytes, it has {found}")));
        }
        Ok(TensorWriter::new(path, file, places))
    }

    /// The same of a file that is empty.
    pub(super) fn fill(&self, mut file: File, path: &Path) -> Result<TensorWriter> {
        self.begin(&mut file, path)?;
        Ok(TensorWriter::new(path.to_path_buf(), file, self.places()?.1))
    }

    fn begin(&self, file: &mut File, path: &Path) -> Result<()> {
        let (header, _, length) = self.places()?;
        file.write_all(&header).and_then(|()| file.set_len(length)).map_err(Error::io("write", path))
    }

    /// All that stands before the numbers, where each tensor lies, and how long the file is.
    fn places(&self) -> Result<(Vec<u8>, HashMap<String, Place>, u64)> {
        let with_type = |layout: &TensorLayout| match dtype_of(layout.kind) {
            Some(dtype) => Ok((dtype, layout.clone())),
            None => Err(Error::Invalid(format!("tensor `{}` has the unsupported type {:?}", layout.name, layout.kind))),
        };
        let mut order = self.tensors.iter().map(with_type).collect::<Result<Vec<_>>>()?;
        // As the safetensors package does: wider types first, so that all are aligned.
        order.sort_by(|(left, left_layout), (right, right_layout)| right.cmp(left).then(left_layout.name.cmp(&right_layout.name)));
        let mut end = 0;
        let mut infos = Vec::with_capacity(order.len());
        let mut places = HashMap::with_capacity(order.len());
        for (dtype, layout) in order {
            let begin = end;
            end += layout.rows() as usize * layout.row_bytes();
            let shape = layout.shape.iter().map(|size| *size as usize).collect();
            infos.push((layout.name.clone(), TensorInfo { dtype, shape, data_offsets: (begin, end) }));
            let twice = places.insert(layout.name.clone(), Place { begin: begin as u64, layout });
            if let Some(twice) = twice {
                return Err(Error::Invalid(format!("file `{}` has two tensors `{}`", self.file.display(), twice.layout.name)));
            }
        }
        let unfit = |error: String| Error::Invalid(format!("cannot lay out `{}`: {error}", self.file.display()));
        let texts = self.metadata.clone().map(|text| HashMap::from([text]));
        let metadata = Metadata::new(texts, infos).map_err(|error| unfit(error.to_string()))?;
        let mut text = serde_json::to_vec(&metadata).map_err(|error| unfit(error.to_string()))?;
        // The numbers begin at a multiple of 8.
        text.resize(text.len().next_multiple_of(8), b' ');
        let header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        for place in places.values_mut() {
            place.begin += header.len() as u64;
        }
        let length = header.len() as u64 + end as u64;
        Ok((header, places, length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::super::{TensorFile, WrittenRows, bytes, write};
    use super::*;

    const KINDS: [Kind; 5] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int8, Kind::Int64];

    fn tensors() -> impl Strategy<Value = Vec<(String, Tensor)>> {
        let tensor = (prop::collection::vec(0_i64..7, 0..4), 0..KINDS.len()).prop_map(|(shape, kind)| {
            let numbers = Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu));
            numbers.view(shape.as_slice()).to_kind(KINDS[kind])
        });
        let named = |all: Vec<Tensor>| all.into_iter().enumerate().map(|(at, tensor)| (format!("tensor {at}"), tensor)).collect();
        prop::collection::vec(tensor, 1..5).prop_map(named)
    }

    /// Cuts rows at these places, by shares of 100.
    fn cut(rows: i64, at: &[i64]) -> Vec<(i64, i64)> {
        let mut places: Vec<i64> = at.iter().map(|share| rows * share / 100).chain([0, rows]).collect();
        places.sort_unstable();
        places.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rows_by_several_writers_make_the_file_that_is_written_whole(
            tensors in tensors(),
            cuts in prop::collection::vec(0_i64..100, 0..4),
            writers in 1_usize..4,
            backwards: bool,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            write(&folder.path().join("whole"), &tensors).expect("writes");
            let layout = FileLayout::new("rows", tensors.iter().map(|(name, tensor)| TensorLayout::of(name, tensor)).collect());
            layout.create(folder.path()).expect("creates");
            let mut all: Vec<TensorWriter> = (0..writers).map(|_| layout.open(folder.path()).expect("opens")).collect();
            for (name, tensor) in &tensors {
                let mut parts = if tensor.size().is_empty() { vec![(0, 1)] } else { cut(tensor.size()[0], &cuts) };
                if backwards {
                    parts.reverse();
                }
                for (at, (first, count)) in parts.into_iter().enumerate() {
                    let rows = if tensor.size().is_empty() { tensor.shallow_clone() } else { tensor.narrow(0, first, count) };
                    all[at % writers].rows(name, first, &rows).expect("fits");
                }
            }
            let written: Vec<WrittenRows> = all.into_iter().flat_map(|writer| writer.finish().expect("syncs")).collect();
            let [whole, rows] = ["whole", "rows"].map(|file| std::fs::read(folder.path().join(file)).expect("reads"));
            prop_assert!(whole == rows, "the file is not that of one writer");
            let file = TensorFile::open(&folder.path().join("rows")).expect("opens");
            for rows in &written {
                file.check(rows).expect("as it was written");
            }
            for (name, tensor) in &tensors {
                prop_assert_eq!(&file.layout(name).expect("is there"), &TensorLayout::of(name, tensor));
                for (first, count) in tensor.size().first().map_or_else(Vec::new, |rows| cut(*rows, &cuts)) {
                    let rows = file.rows(name, first..first + count, None, Device::Cpu).expect("are there");
                    prop_assert_eq!(rows, tensor.narrow(0, first, count));
                }
            }
        }
    }

    #[test]
    fn a_text_of_the_header_comes_back_and_numbers_that_never_come_leave_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout =
            FileLayout::new("a.safetensors", vec![TensorLayout::new("a", &[3, 2], Kind::Float)]).with_metadata("note", "\u{e4} {}");
        layout.create(folder.path()).expect("creates");
        let mut writer = layout.open(folder.path()).expect("opens");
        let row = Tensor::from_slice(&[1.5_f32, -2.0]);
        writer.numbers("a", 2, &row).expect("fits");
        for (first, numbers) in [(5, row.shallow_clone()), (-1, row.shallow_clone()), (0, row.to_kind(Kind::Double))] {
            assert!(writer.numbers("a", first, &numbers).expect_err("no room").to_string().contains("tensor `a` has 6 numbers of Float"));
        }
        assert!(writer.finish().expect("syncs").is_empty(), "they have no checksums");
        let file = TensorFile::open(&folder.path().join("a.safetensors")).expect("opens");
        assert_eq!(file.metadata("note").expect("reads").as_deref(), Some("\u{e4} {}"));
        assert_eq!(file.metadata("other").expect("reads"), None);
        let back = file.tensor("a", None, Device::Cpu).expect("is there");
        assert_eq!(back, Tensor::from_slice(&[0.0_f32, 0.0, 1.5, -2.0, 0.0, 0.0]).view([3, 2]));
    }

    #[test]
    fn rows_that_do_not_fit_and_files_that_are_not_there_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = FileLayout::new("a.safetensors", vec![TensorLayout::new("a", &[4, 3], Kind::Float)]);
        assert!(layout.open(folder.path()).is_err(), "nobody made it");
        layout.create(folder.path()).expect("creates");
        let mut writer = layout.open(folder.path()).expect("opens");
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        for (first, rows) in [
            (2, zeros(&[3, 3], Kind::Float)),
            (-1, zeros(&[3, 3], Kind::Float)),
            (0, zeros(&[3, 2], Kind::Float)),
            (0, zeros(&[3], Kind::Float)),
            (0, zeros(&[3, 3], Kind::Double)),
        ] {
            let error = writer.rows("a", first, &rows).expect_err("does not fit").to_string();
            assert!(error.contains("tensor `a` has shape [4, 3] of Float"), "{error}");
        }
        assert!(writer.rows("b", 0, &zeros(&[4, 3], Kind::Float)).expect_err("no such tensor").to_string().contains("no room"));
        let other = FileLayout::new("a.safetensors", vec![TensorLayout::new("a", &[5, 3], Kind::Float)]);
        assert!(other.open(folder.path()).expect_err("another length").to_string().contains("expected a file of"));
        let twice = FileLayout::new("b", [1, 2].map(|size| TensorLayout::new("a", &[size], Kind::Float)).to_vec());
        assert!(twice.create(folder.path()).expect_err("twice").to_string().contains("two tensors `a`"));
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a damaged file is what this test is about")]
    fn rows_that_were_damaged_later_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let rows = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([4, 3]);
        let layout = FileLayout::new("a.safetensors", vec![TensorLayout::of("a", &rows)]);
        layout.create(folder.path()).expect("creates");
        let mut writer = layout.open(folder.path()).expect("opens");
        for first in [0, 2] {
            writer.rows("a", first, &rows.narrow(0, first, 2)).expect("fits");
        }
        let written = writer.finish().expect("syncs");
        assert_eq!(written, [WrittenRows { tensor: "a".into(), first: 0, rows: 4, crc32c: crc32c::crc32c(&bytes(&rows).expect("bytes")) }]);
        let path = folder.path().join("a.safetensors");
        let mut damaged = std::fs::read(&path).expect("reads");
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        std::fs::write(&path, &damaged).expect("writes");
        let error = TensorFile::open(&path).expect("a whole file").check(&written[0]).expect_err("damaged").to_string();
        assert!(error.contains("a.safetensors") && error.contains("tensor `a` is damaged: rows 0..4"), "{error}");
        let beyond = WrittenRows { rows: 5, ..written[0].clone() };
        assert!(TensorFile::open(&path).expect("a whole file").check(&beyond).is_err());
    }
}
