//! Opens files of text, packed ones too.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use circuitlab_core::{Error as CoreError, TextInput};
use flate2::bufread::MultiGzDecoder;

use crate::Result;

const BUFFER_BYTES: usize = 1 << 17;

/// How a file is packed, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Zstd,
}

impl Packing {
    /// The packing of a file, and the extension of what is packed.
    pub(super) fn of(path: &Path) -> (Self, String) {
        let extension = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let inner = || extension(Path::new(path.file_stem().unwrap_or_default()));
        match extension(path).as_str() {
            "gz" => (Self::Gzip, inner()),
            "zst" => (Self::Zstd, inner()),
            other => (Self::None, other.to_owned()),
        }
    }
}

/// Opens a file; `.gz` and `.zst` files, of one member or frame or of many, are unpacked as they are read.
/// `read` is kept at the number of bytes that were read of the file as it lies there.
pub(super) fn open(path: &Path, read: &Arc<AtomicU64>) -> Result<TextInput> {
    let file = File::open(path).map_err(CoreError::io("read", path))?;
    let file = BufReader::with_capacity(BUFFER_BYTES, Counted { file, read: Arc::clone(read) });
    let reader: Box<dyn BufRead + Send> = match Packing::of(path).0 {
        Packing::None => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER_BYTES, Unpacked { what: "gzip", from: MultiGzDecoder::new(file) })),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(CoreError::io("read", path))?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, Unpacked { what: "zstd", from: decoder }))
        }
    };
    Ok(TextInput { path: path.to_path_buf(), reader })
}

/// A file that says how far it was read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.read.fetch_add(got as u64, Ordering::Relaxed);
        Ok(got)
    }
}

/// Says of a decoder's errors what they mean.
struct Unpacked<R> {
    what: &'static str,
    from: R,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), format!("its {} data is cut short; fetch or make the file again", self.what))
            }
            kind => io::Error::new(kind, format!("its {} data is damaged: {error}", self.what)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn read(name: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        circuitlab_core::files::write_atomic(&path, |out| out.write_all(bytes)).expect("writes");
        let mut all = Vec::new();
        open(&path, &Arc::default()).expect("opens").reader.read_to_end(&mut all).map(|_| all)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("packs")
    }

    fn zstandard(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).expect("packs")
    }

    #[test]
    fn files_of_several_members_are_read_to_their_end() {
        assert_eq!(read("a.txt.gz", &[gzip(b"one "), gzip(b"two")].concat()).expect("whole"), b"one two");
        assert_eq!(read("a.txt.ZST", &[zstandard(b"one "), zstandard(b"two")].concat()).expect("whole"), b"one two");
        assert_eq!(read("a.txt", b"one two").expect("whole"), b"one two");
    }

    #[test]
    fn cut_and_damaged_files_are_errors_at_every_place() {
        let text: Vec<u8> = (0..5000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for (name, whole) in [("a.txt.gz", gzip(&text)), ("a.txt.zst", zstandard(&text))] {
            for length in (1..whole.len()).step_by(997).chain([whole.len() - 1]) {
                let error = read(name, &whole[..length]).expect_err("cut").to_string();
                assert!(error.contains("data is cut short"), "{name}, {length} bytes: {error}");
            }
            let mut damaged = whole;
            damaged[0] ^= 0xff;
            assert!(read(name, &damaged).expect_err("damaged").to_string().contains("data is damaged"));
        }
    }

    #[test]
    fn extensions_say_what_is_packed() {
        let of = |name: &str| Packing::of(Path::new(name));
        assert_eq!(of("a.b.JSONL.gz"), (Packing::Gzip, "jsonl".to_owned()));
        assert_eq!(of("a.txt"), (Packing::None, "txt".to_owned()));
        assert_eq!(of(".gz"), (Packing::None, String::new()));
    }
}
