//! Safetensors files: mapped for reading, whole or some rows; written at once, or laid out first and filled by several processes.

mod file;
mod folder;
mod kinds;
mod layout;
mod write;
mod writer;

pub use file::TensorFile;
pub use folder::FolderWriter;
pub use layout::{FileLayout, TensorLayout};
pub use write::{bytes, write};
pub use writer::{TensorWriter, WrittenRows};

/// How many bytes are in memory at a time on the way between tensors and files, but for rows that are longer.
pub const PIECE_BYTES: usize = 1 << 24;

/// Pieces of at most [`PIECE_BYTES`] that rows are taken in: `(first, rows)`.
pub(crate) fn pieces(rows: i64, row_bytes: usize) -> impl Iterator<Item = (i64, i64)> {
    let at_a_time = (PIECE_BYTES / row_bytes.max(1)).max(1);
    (0..rows).step_by(at_a_time).map(move |first| (first, (at_a_time as i64).min(rows - first)))
}
