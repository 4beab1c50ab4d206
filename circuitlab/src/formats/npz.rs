//! Archives of numpy arrays.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;
use circuitlab_core::tensors::{FileLayout, PIECE_BYTES, TensorLayout, bytes};
use tch::{Kind, Tensor};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::array::{Array, UNPACKED, byte_count};
use super::npy::{self, Header};
use crate::{Error, Result};

/// Bytes that an array may have: ten times those of the largest that are published.
const LARGEST: usize = 32 << 30;

/// Bytes that one compressed byte may become. Deflate reaches 1032.
const RATIO: u64 = 1100;

/// An archive, whose directory has been read.
pub(super) struct Npz {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl Npz {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(CoreError::io("read", path))?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| wrong(path, &error.to_string()))?;
        Ok(Self { path: path.to_path_buf(), archive })
    }

    /// What an array is, where the archive has it, by the name that it was saved under.
    pub(super) fn header(&mut self, name: &str) -> Result<Option<Header>> {
        match self.entry(name) {
            Ok((header, _)) => Ok(Some(header)),
            Err(Failed::Missing) => Ok(None),
            Err(Failed::Wrong(error)) => Err(error),
        }
    }

    /// Unpacks an array into a temporary file that goes with the array.
    pub(super) fn array(&mut self, name: &str) -> Result<Array> {
        let path = self.path.clone();
        let missing = || -> Error { CoreError::format(&path, format!("the archive holds no array `{name}`")).into() };
        let (header, mut entry) = match self.entry(name) {
            Ok(found) => found,
            Err(Failed::Missing) => return Err(missing()),
            Err(Failed::Wrong(error)) => return Err(error),
        };
        let count = byte_count(&header.shape, header.kind).unwrap_or(usize::MAX) as u64;
        let numbers = count / header.kind.elt_size_in_bytes() as u64;
        let place = tempfile::NamedTempFile::new().map_err(CoreError::io("create", std::env::temp_dir()))?.into_temp_path();
        let folder = place.parent().unwrap_or(&place);
        FileLayout::new(&*place, vec![TensorLayout::new(UNPACKED, &[numbers as i64], header.kind)]).create(folder)?;
        let mut file = File::options().write(true).open(&place).map_err(CoreError::io("write", &place))?;
        let copied = file.seek(SeekFrom::End(-(count as i64))).and_then(|_| io::copy(&mut entry.by_ref().take(count), &mut file));
        // At its end the archive's checksum is compared.
        let rest = copied.and_then(|copied| Ok((copied, entry.read(&mut [0])?)));
        let (copied, rest) = rest.map_err(|error| wrong(&path, &format!("array `{name}`: {error}")))?;
        if copied != count || rest > 0 {
            let said = format!("array `{name}` holds other numbers than its shape {:?} says", header.shape);
            return Err(CoreError::format(&path, said).into());
        }
        Array::unpacked(place, (path, name.to_owned()), header.shape, header.turned)
    }

    /// The header of an array, and a reader of its numbers.
    fn entry(&mut self, name: &str) -> Result<(Header, impl Read + '_), Failed> {
        let path = &self.path;
        let failed = |message: String| Failed::Wrong(wrong(path, &format!("array `{name}`: {message}")));
        let mut entry = match self.archive.by_name(&format!("{name}.npy")) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) => return Err(Failed::Missing),
            Err(error) => return Err(failed(error.to_string())),
        };
        let (packed, unpacked) = (entry.compressed_size(), entry.size());
        if unpacked > LARGEST as u64 || unpacked / RATIO > packed {
            return Err(failed(format!("its {packed} bytes are said to become {unpacked}")));
        }
        let read = |entry: &mut dyn Read, into: &mut [u8]| entry.read_exact(into).map_err(|error| failed(error.to_string()));
        let mut start = [0; 12];
        read(&mut entry, &mut start)?;
        let length = npy::length(&start).map_err(failed)?;
        let mut bytes = start.to_vec();
        bytes.resize(length.max(start.len()), 0);
        read(&mut entry, &mut bytes[start.len()..])?;
        let header = npy::parse(&bytes).map_err(failed)?;
        let count = byte_count(&header.shape, header.kind).unwrap_or(usize::MAX);
        if count > LARGEST || (header.begin as u64).saturating_add(count as u64) != unpacked {
            return Err(failed(format!("it has {unpacked} bytes, and its shape {:?} needs {count} after its header", header.shape)));
        }
        // A header of ten bytes and no text is shorter than what was read first.
        let ahead = bytes.split_off(header.begin);
        Ok((header, io::Cursor::new(ahead).chain(entry)))
    }
}

impl std::fmt::Debug for Npz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Npz").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why there is no array.
enum Failed {
    Missing,
    Wrong(Error),
}

fn wrong(path: &Path, message: &str) -> Error {
    let line = message.lines().next().unwrap_or_default();
    CoreError::format(path, format!("not a whole archive of numpy arrays: {line}")).into()
}

/// Reads all arrays of an archive, as a check.
///
/// # Errors
/// A file that is no archive, or damaged, and arrays that are none.
pub fn check(path: &Path) -> Result<()> {
    let mut npz = Npz::open(path)?;
    let names: Vec<String> = npz.archive.file_names().filter_map(|name| Some(name.ok()?.strip_suffix(".npy")?.to_owned())).collect();
    names.iter().try_for_each(|name| npz.array(name)?.read().map(drop))
}

/// An archive that is written, nothing of it compressed.
pub(super) struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<File>,
}

impl NpzWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(CoreError::io("create", path))?;
        Ok(Self { path: path.to_path_buf(), zip: ZipWriter::new(file) })
    }

    /// Begins an array. Its rows follow.
    pub(super) fn begin(&mut self, name: &str, shape: &[i64], kind: Kind) -> Result<()> {
        let header = npy::header(shape, kind)
            .ok_or_else(|| Error::Invalid(format!("numpy has no numbers of {kind:?}; ask for `--dtype f32`, which holds the same ones")))?;
        let large = byte_count(shape, kind).is_none_or(|bytes| bytes > u32::MAX as usize / 2);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
        let begun = self.zip.start_file(format!("{name}.npy"), options).map_err(io::Error::from);
        begun.and_then(|()| self.zip.write_all(&header)).map_err(|error| CoreError::io("write", &self.path)(error).into())
    }

    /// Adds rows to the array that was begun last.
    pub(super) fn rows(&mut self, rows: &Tensor) -> Result<()> {
        for piece in bytes(rows)?.chunks(PIECE_BYTES) {
            self.zip.write_all(piece).map_err(CoreError::io("write", &self.path))?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        let Self { path, zip } = self;
        let written = zip.finish().map_err(io::Error::from).and_then(|file| file.sync_all());
        Ok(written.map_err(CoreError::io("write", &path))?)
    }
}
