//! Codecs of activation blocks: `none`, `int8` and `zstd`. `int8+zstd` is the default of a cache.

mod int8;
mod none;
mod zstd;

pub use int8::{Int8, Int8Config};
pub use none::{Uncompressed, UncompressedConfig};
pub use zstd::{Zstd, ZstdConfig};
