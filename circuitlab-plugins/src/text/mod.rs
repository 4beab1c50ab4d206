//! Text sources: `txt`, `jsonl`, `parquet`.

mod field;
mod jsonl;
mod parquet;
mod txt;

pub use jsonl::{Jsonl, JsonlConfig};
pub use parquet::{Parquet, ParquetConfig};
pub use txt::{Txt, TxtConfig};
