//! From files of text to contexts of tokens.
//!
//! [`resolve`] finds the files and who reads them, [`Tokenizer`] encodes documents, [`pack`] cuts them into contexts: each
//! begins with the model's BOS, where it has one, and none crosses from one document into the next.

mod digest;
mod pack;
mod range;
mod source;
mod tokenizer;

pub use digest::{sha256, sha256_file};
pub use pack::{Context, PackOptions, PackedText, pack};
pub use range::TextRange;
pub use source::{SourceFile, SourceRecord, resolve};
pub use tokenizer::Tokenizer;
