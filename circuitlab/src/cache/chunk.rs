//! `chunk-000000.clab`: the rows of one chunk.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `CLABACT` and the version, 1 |
//! | 4 | length of the header, little endian |
//! | header | JSON: `rows`, `layers`, `d_model`, and length and SHA-256 of every block |
//! | blocks | for each layer the inputs and the outputs, encoded by the cache's codec chain |
//! | 12 for each row | index: all token ids, then all document numbers, then all positions, 32-bit little endian |

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use circuitlab_core::files::write_atomic;
use circuitlab_core::{BlockShape, CodecChain};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::ChunkEntry;
use crate::text::sha256;
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"CLABACT\x01";
const PREFIX_BYTES: u64 = 12;
const LONGEST_HEADER_BYTES: usize = 16 << 20;

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
    sha256: String,
}

/// Writes a chunk: `blocks` are the encoded inputs and outputs of layer 0, of layer 1, ...
pub(super) fn write(part: &Path, file: String, shape: BlockShape, blocks: &[Vec<u8>], index: &RowIndex) -> Result<ChunkEntry> {
    let index: Vec<u8> =
        [&index.tokens, &index.documents, &index.positions].into_iter().flatten().flat_map(|id| id.to_le_bytes()).collect();
    let all = || blocks.iter().chain([&index]);
    let header = Header {
        rows: shape.rows,
        layers: blocks.len() / 2,
        d_model: shape.width,
        blocks: all().map(|block| Block { bytes: block.len() as u64, sha256: sha256(block) }).collect(),
    };
    let header = serde_json::to_vec(&header).map_err(|error| Error::Invalid(format!("chunk header: {error}")))?;
    let header_bytes = u32::try_from(header.len()).map_err(|_| Error::Invalid("the model has too many layers for a chunk".to_owned()))?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    write_atomic(&part.join(&file), |out| {
        let mut put = |piece: &[u8]| -> io::Result<()> {
            hasher.update(piece);
            bytes += piece.len() as u64;
            out.write_all(piece)
        };
        put(&MAGIC)?;
        put(&header_bytes.to_le_bytes())?;
        put(&header)?;
        all().try_for_each(|block| put(block))
    })?;
    Ok(ChunkEntry { file, rows: shape.rows as u64, bytes, sha256: circuitlab_core::files::hexadecimal(&hasher.finalize()) })
}

/// A chunk that is open for reading; every block is checked when it is read.
#[derive(Debug)]
pub struct ChunkReader<'a> {
    path: PathBuf,
    file: File,
    codec: &'a CodecChain,
    header: Header,
    /// Where the first block begins.
    blocks_at: u64,
}

impl<'a> ChunkReader<'a> {
    /// Opens a chunk and checks its header against what the manifest says of it.
    ///
    /// # Errors
    /// A file that is missing, cut short, or another one than the manifest's.
    pub(super) fn open(path: PathBuf, entry: &ChunkEntry, layers: usize, d_model: usize, codec: &'a CodecChain) -> Result<Self> {
        let read = |error| Error::from(circuitlab_core::Error::io("read", &path)(error));
        let wrong = |message: String| Error::from(circuitlab_core::Error::format(&path, message));
        let mut file = File::open(&path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        if length != entry.bytes {
            return Err(wrong(format!("expected {} bytes, got {length}: it is damaged", entry.bytes)));
        }
        let mut prefix = [0; PREFIX_BYTES as usize];
        file.read_exact(&mut prefix).map_err(read)?;
        let (magic, header_bytes) = prefix.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(wrong("it does not begin as a chunk of this version does".to_owned()));
        }
        let header_bytes = header_bytes.iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        if header_bytes > LONGEST_HEADER_BYTES || header_bytes as u64 > length - PREFIX_BYTES {
            return Err(wrong(format!("its header of {header_bytes} bytes is too long")));
        }
        let mut header = vec![0; header_bytes];
        file.read_exact(&mut header).map_err(read)?;
        let header: Header = serde_json::from_slice(&header).map_err(|error| wrong(format!("its header is damaged: {error}")))?;
        let blocks_at = PREFIX_BYTES + header_bytes as u64;
        let end = header.blocks.iter().try_fold(blocks_at, |at, block| at.checked_add(block.bytes));
        let index_bytes = header.rows.checked_mul(12).map(|bytes| bytes as u64);
        let fits = (header.rows as u64, header.layers, header.d_model) == (entry.rows, layers, d_model)
            && header.blocks.len() == 2 * layers + 1
            && header.blocks.last().map(|block| block.bytes) == index_bytes;
        if !fits || end != Some(length) {
            return Err(wrong("its header does not fit the manifest: it is damaged, or from another cache".to_owned()));
        }
        Ok(Self { path, file, codec, header, blocks_at })
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.header.rows
    }

    /// Decodes the inputs or outputs of one layer: `[rows, d_model]`, row by row.
    ///
    /// # Errors
    /// A layer that is not there, and damage.
    pub fn values(&mut self, layer: usize, side: Side) -> Result<Vec<f32>> {
        let shape = BlockShape { rows: self.header.rows, width: self.header.d_model };
        if layer >= self.header.layers {
            let message = format!("there is no layer {layer}, it has {}", self.header.layers);
            return Err(circuitlab_core::Error::format(&self.path, message).into());
        }
        let bytes = self.block(2 * layer + usize::from(side == Side::Targets))?;
        let decoded = self.codec.decode(&bytes, shape);
        decoded.map_err(|error| circuitlab_core::Error::format(&self.path, format!("layer {layer}: {error}")).into())
    }

    /// Where its rows come from.
    ///
    /// # Errors
    /// Damage.
    pub fn index(&mut self) -> Result<RowIndex> {
        let bytes = self.block(2 * self.header.layers)?;
        let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let part = |number: usize| ids[number * self.header.rows..(number + 1) * self.header.rows].to_vec();
        Ok(RowIndex { tokens: part(0), documents: part(1), positions: part(2) })
    }

    fn block(&mut self, number: usize) -> Result<Vec<u8>> {
        let read = |error| Error::from(circuitlab_core::Error::io("read", &self.path)(error));
        let at = self.blocks_at + self.header.blocks[..number].iter().map(|block| block.bytes).sum::<u64>();
        let block = &self.header.blocks[number];
        self.file.seek(SeekFrom::Start(at)).map_err(read)?;
        // All blocks together are as long as the file, so this is no more than the file.
        let mut bytes = vec![0; block.bytes as usize];
        self.file.read_exact(&mut bytes).map_err(read)?;
        if sha256(&bytes) == block.sha256 {
            return Ok(bytes);
        }
        Err(circuitlab_core::Error::format(&self.path, format!("block {number} is damaged: its checksum is wrong")).into())
    }
}
