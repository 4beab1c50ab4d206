//! Codecs of activation blocks: `none`, `bf16`, `int8`, `int4` and `zstd`. `int8+zstd` is the default of a cache.

mod bf16;
mod int4;
mod int8;
mod none;
mod place;
mod scaled;
mod zstd;

pub use bf16::{Bf16, Bf16Config};
pub use int4::{Int4, Int4Config, Nibbles};
pub use int8::{Bytes, Int8, Int8Config};
pub use none::{Uncompressed, UncompressedConfig};
pub use scaled::{Integers, Scaled};
pub use zstd::{Zstd, ZstdConfig};
