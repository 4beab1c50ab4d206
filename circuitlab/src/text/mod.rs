//! From files of text to contexts of tokens.
//!
//! [`resolve`] finds the files and who reads them, [`Tokenizer`] encodes documents, [`pack`] cuts them into contexts as
//! [`PackOptions`] say: by default each begins with the model's BOS, where it has one, and none crosses from one document into the next.
//! Nothing is held in memory whole: documents come in pieces, and tokens and contexts go into temporary files.

mod deal;
mod digest;
mod find;
#[cfg(test)]
pub(crate) mod fixture;
mod input;
mod layout;
mod mix;
mod pack;
mod packed;
mod packer;
mod range;
mod source;
mod spool;
mod tokenizer;

pub use deal::Deal;
pub use digest::{sha256, sha256_file};
pub use find::{resolve, sources_with};
pub use layout::{BosPolicy, PackOptions};
pub(crate) use mix::check_weights;
pub use pack::pack;
pub use packed::{Context, Origin, PackedText};
pub use packer::Packer;
pub use range::TextRange;
pub use source::{SourceFile, SourceRecord};
pub use tokenizer::Tokenizer;
