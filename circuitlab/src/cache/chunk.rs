//! `chunk-000000.clab`: the rows of one chunk.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `CLABACT` and the version, 2 |
//! | 4 | length of the header, little endian |
//! | header | JSON: `rows`, `layers`, `d_model`, and length and CRC-32C of every block |
//! | blocks | for each layer the inputs and the outputs, encoded by the cache's codec chain |
//! | 12 for each row | index: all token ids, then all document numbers, then all positions, 32-bit little endian |
//!
//! The manifest has the SHA-256 of the whole file, which `verify` compares. A reader checks each block that it reads by the CRC, which
//! finds every flipped bit too and costs a tenth of it or less.

use circuitlab_core::files::hexadecimal;
use circuitlab_core::{BlockShape, CodecChain, Error as CoreError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::ChunkEntry;
use super::place::{Condition, Place, PlaceFile};
use super::pool::Pool;
use crate::{Error, Result};

const NAME: &[u8] = b"CLABACT";
const VERSION: u8 = 2;
const PREFIX_BYTES: u64 = 12;
const LONGEST_HEADER_BYTES: u64 = 16 << 20;

/// Inputs or outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the transcoder reads.
    Inputs,
    /// What it reconstructs.
    Targets,
}

/// Where the rows of a chunk come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowIndex {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Numbers of documents.
    pub documents: Vec<u32>,
    /// Places in the document's tokens. A kept row of BOS has that of the token after it.
    pub positions: Vec<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    rows: usize,
    layers: usize,
    d_model: usize,
    /// Inputs and outputs of layer 0, of layer 1, ..., and last the index.
    blocks: Vec<Block>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    bytes: u64,
    crc32c: u32,
}

/// Writes a chunk: `blocks` are the encoded inputs and outputs of layer 0, of layer 1, ...
pub(super) fn write(part: &Place, file: String, shape: BlockShape, blocks: &[Vec<u8>], index: &RowIndex) -> Result<ChunkEntry> {
    let index: Vec<u8> =
        [&index.tokens, &index.documents, &index.positions].into_iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
    let all = || blocks.iter().chain([&index]);
    let header = Header {
        rows: shape.rows,
        layers: blocks.len() / 2,
        d_model: shape.width,
        blocks: all().map(|block| Block { bytes: block.len() as u64, crc32c: crc32c::crc32c(block) }).collect(),
    };
    let header = serde_json::to_vec(&header).map_err(|error| Error::Invalid(format!("chunk header: {error}")))?;
    let header_bytes = u32::try_from(header.len()).map_err(|_| Error::Invalid("the model has too many layers for a chunk".to_owned()))?;
    let prefix = [NAME, &[VERSION], &header_bytes.to_le_bytes()].concat();
    let pieces: Vec<&[u8]> = [&prefix[..], &header].into_iter().chain(all().map(Vec::as_slice)).collect();
    let mut hasher = Sha256::new();
    for piece in &pieces {
        hasher.update(piece);
    }
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    part.write(&file, &pieces, Condition::Always)?;
    Ok(ChunkEntry { file, rows: shape.rows as u64, bytes, sha256: hexadecimal(&hasher.finalize()) })
}

/// A chunk that is open for reading, from many threads at once; every block is checked when it is read.
#[derive(Debug)]
pub struct ChunkReader<'a> {
    chunk: ChunkFile,
    codec: &'a CodecChain,
}

/// A chunk's file, read without its codec.
#[derive(Debug)]
pub(super) struct ChunkFile {
    file: PlaceFile,
    header: Header,
    /// Where each block begins, and the end.
    bounds: Vec<u64>,
}

impl ChunkFile {
    /// Opens a chunk and checks its header against what the manifest says of it.
    ///
    /// # Errors
    /// A file that is missing, cut short, or another one than the manifest's.
    pub(super) fn open(part: &Place, entry: &ChunkEntry, layers: usize, d_model: usize) -> Result<Self> {
        let file = part.open(&entry.file)?;
        let (header, blocks_at) = read_header(&file, entry)?;
        let end = header.blocks.iter().try_fold(blocks_at, |at, block| at.checked_add(block.bytes));
        let index_bytes = header.rows.checked_mul(12).map(|bytes| bytes as u64);
        let fits = (header.rows as u64, header.layers, header.d_model) == (entry.rows, layers, d_model)
            && header.blocks.len() == 2 * layers + 1
            && header.blocks.last().map(|block| block.bytes) == index_bytes;
        if !fits || end != Some(file.length()) {
            let message = "its header does not fit the manifest: it is damaged, or from another cache";
            return Err(CoreError::format(file.path(), message).into());
        }
        // The sum of all is the file's length, so none overflows.
        let ends = header.blocks.iter().scan(blocks_at, |at, block| {
            *at += block.bytes;
            Some(*at)
        });
        let bounds = std::iter::once(blocks_at).chain(ends).collect();
        Ok(Self { file, header, bounds })
    }

    /// Where its rows come from.
    ///
    /// # Errors
    /// Damage.
    pub(super) fn index(&self) -> Result<RowIndex> {
        let mut bytes = Vec::new();
        self.block(2 * self.header.layers, &mut bytes)?;
        let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let part = |number: usize| ids[number * self.header.rows..(number + 1) * self.header.rows].to_vec();
        Ok(RowIndex { tokens: part(0), documents: part(1), positions: part(2) })
    }

    /// Reads a block as it is stored, unchecked.
    fn read_block(&self, number: usize, bytes: &mut Vec<u8>) -> Result<()> {
        // All blocks together are as long as the file, so this is no more than the file.
        self.file.read(self.bounds[number]..self.bounds[number + 1], bytes)
    }

    fn block(&self, number: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.read_block(number, bytes)?;
        self.check(number, bytes)
    }

    fn check(&self, number: usize, bytes: &[u8]) -> Result<()> {
        if crc32c::crc32c(bytes) == self.header.blocks[number].crc32c {
            return Ok(());
        }
        Err(CoreError::format(self.file.path(), format!("block {number} is damaged: its checksum is wrong")).into())
    }
}

impl<'a> ChunkReader<'a> {
    /// Opens a chunk to be read by a codec.
    ///
    /// # Errors
    /// Those of [`ChunkFile::open`].
    pub(super) fn open(part: &Place, entry: &ChunkEntry, layers: usize, d_model: usize, codec: &'a CodecChain) -> Result<Self> {
        Ok(Self { chunk: ChunkFile::open(part, entry, layers, d_model)?, codec })
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.chunk.header.rows
    }

    /// The shape of each of its blocks.
    pub(super) fn shape(&self) -> BlockShape {
        BlockShape { rows: self.chunk.header.rows, width: self.chunk.header.d_model }
    }

    /// Bytes of its file.
    pub fn bytes(&self) -> u64 {
        self.chunk.file.length()
    }

    /// Decodes the inputs or outputs of one layer: `[rows, d_model]`, row by row.
    ///
    /// # Errors
    /// A layer that is not there, and damage.
    pub fn values(&self, layer: usize, side: Side) -> Result<Vec<f32>> {
        let bytes = self.encoded(layer, side)?;
        self.codec.decode(&bytes, self.shape()).map_err(|error| self.of_block(block_of(layer, side), &error))
    }

    /// The inputs or outputs of one layer as they are stored.
    ///
    /// # Errors
    /// A layer that is not there, and a wrong checksum.
    pub fn encoded(&self, layer: usize, side: Side) -> Result<Vec<u8>> {
        if layer >= self.chunk.header.layers {
            let message = format!("there is no layer {layer}, it has {}", self.chunk.header.layers);
            return Err(CoreError::format(self.chunk.file.path(), message).into());
        }
        let mut bytes = Vec::new();
        self.chunk.block(block_of(layer, side), &mut bytes)?;
        Ok(bytes)
    }

    /// Reads the blocks of all layers on all threads, each without its codecs of bytes: what `decode_rows` of the chain takes. The
    /// memory is the pool's and goes back to it in the end.
    pub(super) fn unpacked(&self, pool: &Pool) -> Result<Vec<Vec<u8>>> {
        let ranges: Vec<_> =
            (0..2 * self.chunk.header.layers).map(|block| self.chunk.bounds[block]..self.chunk.bounds[block + 1]).collect();
        let fetched = match self.chunk.file.fetch(&ranges)? {
            Some(fetched) => fetched.into_iter().map(Some).collect(),
            None => vec![None; ranges.len()],
        };
        let blocks = fetched.into_par_iter().enumerate().map(|(block, fetched)| {
            let bytes = if let Some(bytes) = fetched {
                self.chunk.check(block, &bytes)?;
                bytes
            } else {
                let mut bytes = pool.take();
                self.chunk.block(block, &mut bytes)?;
                bytes
            };
            if !self.codec.packs() {
                return Ok(bytes);
            }
            let (mut unpacked, mut spare) = (pool.take(), Vec::new());
            let done = self.codec.unpack(&bytes, self.shape(), &mut unpacked, &mut spare).map(drop);
            pool.give_back(bytes);
            done.map(|()| unpacked).map_err(|error| self.of_block(block, &error))
        });
        blocks.collect()
    }

    /// Where its rows come from.
    ///
    /// # Errors
    /// Damage.
    pub fn index(&self) -> Result<RowIndex> {
        self.chunk.index()
    }

    /// What a codec says of one of its blocks.
    pub(super) fn of_block(&self, block: usize, error: &CoreError) -> Error {
        let side = if block.is_multiple_of(2) { "inputs" } else { "outputs" };
        CoreError::format(self.chunk.file.path(), format!("{side} of layer {}: {error}", block / 2)).into()
    }

    /// Reads a block as it is stored, unchecked.
    pub(super) fn read_block(&self, number: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.chunk.read_block(number, bytes)
    }
}

/// Where the inputs or outputs of a layer stand among a chunk's blocks.
pub(super) fn block_of(layer: usize, side: Side) -> usize {
    2 * layer + usize::from(side == Side::Targets)
}

/// A chunk's header, and where the first block begins.
fn read_header(file: &PlaceFile, entry: &ChunkEntry) -> Result<(Header, u64)> {
    let wrong = |message: String| Error::from(CoreError::format(file.path(), message));
    if file.length() != entry.bytes {
        return Err(wrong(format!("expected {} bytes, got {}: it is damaged", entry.bytes, file.length())));
    }
    let mut bytes = Vec::new();
    file.read(0..PREFIX_BYTES.min(file.length()), &mut bytes)?;
    let Some((name, [version, length @ ..])) = bytes.split_at_checked(NAME.len()).filter(|(name, _)| *name == NAME) else {
        return Err(wrong("it does not begin as a chunk does".to_owned()));
    };
    let _ = name;
    if *version != VERSION {
        return Err(wrong(format!("expected a chunk of version {VERSION}, got {version}; make the cache again with this program")));
    }
    let header_bytes = length.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    if length.len() != 4 || header_bytes > LONGEST_HEADER_BYTES || header_bytes > file.length() - PREFIX_BYTES {
        return Err(wrong(format!("its header of {header_bytes} bytes is too long")));
    }
    file.read(PREFIX_BYTES..PREFIX_BYTES + header_bytes, &mut bytes)?;
    let header = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("its header is damaged: {error}")))?;
    Ok((header, PREFIX_BYTES + header_bytes))
}
