//! What reading a cache costs, stage by stage.

use std::hint::black_box;
use std::time::{Duration, Instant};

use circuitlab_core::random::Permutation;
use serde::Serialize;

use super::open::Cache;
use crate::Result;

/// Seconds that one thread takes for one chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stages {
    /// Bytes of the chunk's values as 32-bit floats.
    pub raw_bytes: u64,
    /// Bytes of its blocks as they are stored.
    pub stored_bytes: u64,
    /// Bytes of its blocks without codecs of bytes.
    pub unpacked_bytes: u64,
    /// Reading the blocks.
    pub read_s: f64,
    /// The CRC of each block, which every reader compares.
    pub checksum_s: f64,
    /// The SHA-256 of the same bytes, which only `cache verify` compares.
    pub digest_s: f64,
    /// Undoing the codecs of bytes.
    pub unpack_s: f64,
    /// Undoing the codec of values, a whole block at once.
    pub decode_s: f64,
    /// The same row by row, in a shuffled order; nothing where the codec has no access to rows.
    pub decode_rows_s: Option<f64>,
}

/// Measures the stages on one chunk, in this thread.
///
/// # Errors
/// Chunks that are not there, and damage.
pub fn stages(cache: &Cache, chunk: usize) -> Result<Stages> {
    let reader = cache.chunk(chunk)?;
    let (shape, codec) = (reader.shape(), cache.codec());
    let values = shape.values()?;
    let order = Permutation::new(0, "stages", chunk as u64, shape.rows as u64);
    let mut done = Stages { decode_rows_s: codec.has_row_access().then_some(0.0), ..Stages::default() };
    let (mut stored, mut unpacked, mut spare) = (Vec::new(), Vec::new(), Vec::new());
    let mut decoded = vec![0.0_f32; values];
    for block in 0..2 * cache.identity().layers {
        done.read_s += seconds(|| reader.read_block(block, &mut stored))?;
        done.checksum_s += seconds(|| Ok(black_box(crc32c::crc32c(black_box(&stored)))))?;
        done.digest_s += seconds(|| Ok(black_box(crate::text::sha256(black_box(&stored)))))?;
        done.unpack_s += seconds(|| Ok(codec.unpack(&stored, shape, &mut unpacked, &mut spare).map(drop)?))?;
        let bytes = if codec.packs() { &unpacked } else { &stored };
        done.decode_s += seconds(|| Ok(codec.decode_rows(bytes, shape, 0, black_box(&mut decoded))?))?;
        if let Some(rows_s) = &mut done.decode_rows_s {
            let mut rows = decoded.chunks_exact_mut(shape.width).enumerate();
            *rows_s += seconds(|| {
                let decode = |(place, to): (usize, &mut [f32])| codec.decode_rows(bytes, shape, order.at(place as u64) as usize, to);
                Ok(rows.try_for_each(decode)?)
            })?;
            black_box(&decoded);
        }
        done.raw_bytes += 4 * values as u64;
        done.stored_bytes += stored.len() as u64;
        done.unpacked_bytes += bytes.len() as u64;
    }
    Ok(done)
}

fn seconds<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().max(Duration::from_nanos(1)).as_secs_f64())
}
