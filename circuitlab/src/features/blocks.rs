//! Files of records in compressed blocks, any of which can be read alone.
//!
//! A file is a magic word, blocks one after the other, the index and a tail of fixed size. A block is a zstd frame; the index, itself one,
//! has of each block its place, its length and the CRC-32C of its bytes.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use circuitlab_core::{Error as CoreError, files};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;

const MAGIC: &[u8; 8] = b"CLBLOCK1";

/// Place and length of the index, its CRC, and the magic word again.
const TAIL_BYTES: usize = 8 + 8 + 4 + 8;

/// Fast to write and small enough: most of a block is tokens and activations, which no level packs well.
const LEVEL: i32 = 3;

/// No block is larger, unpacked: a damaged one must not fill the memory.
const LARGEST_BYTES: u64 = 1 << 30;

/// Place, length and CRC of a block.
type Entry = (u64, u32, u32);

/// Writes a file of blocks.
pub(super) struct BlockWriter<'o> {
    out: &'o mut dyn Write,
    at: u64,
    index: Vec<Entry>,
}

impl BlockWriter<'_> {
    /// Adds a block, which is read as what it was written from.
    pub(super) fn push<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let entry = self.frame(value)?;
        self.index.push(entry);
        Ok(())
    }

    fn frame<T: Serialize>(&mut self, value: &T) -> io::Result<Entry> {
        let plain = postcard::to_stdvec(value).map_err(io::Error::other)?;
        let packed = zstd::bulk::compress(&plain, LEVEL)?;
        let length = u32::try_from(packed.len()).map_err(io::Error::other)?;
        self.out.write_all(&packed)?;
        let entry = (self.at, length, crc32c::crc32c(&packed));
        self.at += packed.len() as u64;
        Ok(entry)
    }
}

/// Writes a file whole, beside its place, and renames it.
///
/// # Errors
/// What the file system and `fill` return.
pub(super) fn write(path: &Path, fill: impl FnOnce(&mut BlockWriter<'_>) -> Result<()>) -> Result<()> {
    let mut failed = None;
    let written = files::write_atomic(path, |out| {
        let mut writer = BlockWriter { out, at: MAGIC.len() as u64, index: Vec::new() };
        writer.out.write_all(MAGIC)?;
        if let Err(error) = fill(&mut writer) {
            failed = Some(error);
            return Err(io::Error::other("its content could not be made"));
        }
        let index = std::mem::take(&mut writer.index);
        let (at, length, crc) = writer.frame(&index)?;
        let tail = [&at.to_le_bytes()[..], &u64::from(length).to_le_bytes(), &crc.to_le_bytes(), MAGIC].concat();
        writer.out.write_all(&tail)
    });
    failed.map_or_else(|| Ok(written?), Err)
}

/// A file of blocks that is open for reading.
#[derive(Debug)]
pub(super) struct BlockFile {
    path: PathBuf,
    file: File,
    index: Vec<Entry>,
}

impl BlockFile {
    /// Opens a file and reads its index.
    ///
    /// # Errors
    /// A file that is not there, cut short or damaged.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(CoreError::io("read", path))?;
        let bytes = file.metadata().map_err(CoreError::io("read", path))?.len();
        let cut = || CoreError::format(path, "it is cut short, or no file of blocks; make it again");
        let tail_at = bytes.checked_sub(TAIL_BYTES as u64).filter(|at| *at >= MAGIC.len() as u64).ok_or_else(cut)?;
        let mut tail = [0; TAIL_BYTES];
        file.read_exact_at(&mut tail, tail_at).map_err(CoreError::io("read", path))?;
        let (numbers, magic) = tail.split_at(TAIL_BYTES - MAGIC.len());
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| numbers[at + byte]));
        let crc = u32::from_le_bytes(std::array::from_fn(|byte| numbers[16 + byte]));
        let (at, length) = (number(0), number(8));
        if magic != MAGIC || at.checked_add(length) != Some(tail_at) {
            return Err(cut().into());
        }
        let length = u32::try_from(length).map_err(|_| cut())?;
        let mut opened = Self { path: path.to_path_buf(), file, index: Vec::new() };
        opened.index = opened.frame((at, length, crc), "its index")?;
        Ok(opened)
    }

    /// How many blocks it has.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Reads a block.
    ///
    /// # Errors
    /// A block that there is not, and damage.
    pub(super) fn read<T: DeserializeOwned>(&self, block: usize) -> Result<T> {
        let missing = || CoreError::format(&self.path, format!("there is no block {block}, there are {}", self.len()));
        let entry = *self.index.get(block).ok_or_else(missing)?;
        self.frame(entry, &format!("block {block}"))
    }

    fn frame<T: DeserializeOwned>(&self, (at, length, crc): Entry, what: &str) -> Result<T> {
        let damaged = |why: &str| CoreError::format(&self.path, format!("{what} is damaged ({why}); make the file again"));
        let mut packed = Vec::new();
        packed.try_reserve_exact(length as usize).map_err(|_| damaged("its length cannot be"))?;
        packed.resize(length as usize, 0);
        self.file.read_exact_at(&mut packed, at).map_err(CoreError::io("read", &self.path))?;
        if crc32c::crc32c(&packed) != crc {
            return Err(damaged("its checksum is another").into());
        }
        let mut plain = Vec::new();
        let unpacked =
            zstd::stream::Decoder::new(packed.as_slice()).and_then(|decoder| decoder.take(LARGEST_BYTES).read_to_end(&mut plain));
        unpacked.map_err(|error| damaged(&error.to_string()))?;
        Ok(postcard::from_bytes(&plain).map_err(|error| damaged(&error.to_string()))?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(path: &Path, blocks: &[Vec<(u8, f32)>]) {
        write(path, |out| Ok(blocks.iter().try_for_each(|block| out.push(block)).map_err(CoreError::io("write", path))?)).expect("writes");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn blocks_come_back_and_damage_is_found(
            blocks in prop::collection::vec(prop::collection::vec((any::<u8>(), -1e3_f32..1e3), 0..50), 1..6),
            place in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("blocks");
            written(&path, &blocks);
            let file = BlockFile::open(&path).expect("opens");
            prop_assert_eq!(file.len(), blocks.len());
            for (number, block) in blocks.iter().enumerate().rev() {
                prop_assert_eq!(&file.read::<Vec<(u8, f32)>>(number).expect("reads"), block);
            }
            prop_assert!(file.read::<Vec<u8>>(blocks.len()).is_err());

            let whole = std::fs::read(&path).expect("reads");
            let mut other = whole.clone();
            let at = place.index(whole.len() - MAGIC.len()) + MAGIC.len();
            other[at] ^= 0x10;
            files::write_atomic(&path, |out| out.write_all(&other)).expect("writes");
            let damaged = BlockFile::open(&path).and_then(|file| (0..blocks.len()).try_for_each(|number| file.read::<Vec<(u8, f32)>>(number).map(drop)));
            prop_assert!(damaged.is_err(), "byte {}", at);

            files::write_atomic(&path, |out| out.write_all(&whole[..cut.index(whole.len())])).expect("writes");
            prop_assert!(BlockFile::open(&path).is_err());
        }
    }
}
