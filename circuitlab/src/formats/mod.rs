//! Other tools' transcoders: read into folders of our own, and written from them.
//!
//! | format           | files                                                                                            | kinds    |
//! |------------------|--------------------------------------------------------------------------------------------------|----------|
//! | `circuit-tracer` | `W_enc_{l}` and `W_dec_{l}`, or `layer_{l}`, with `config.yaml`; the layout of our own folders   | CLT, PLT |
//! | `gemma-scope`    | `layer_{l}/../params.npz`: `W_enc [d_model, d_features]`, `W_dec`, `b_enc`, `b_dec`, `threshold` | PLT      |
//! | `gemma-scope-2`  | a safetensors file for each layer: the same in small letters, `affine_skip_connection`           | CLT, PLT |
//! | `clt-forge`      | `clt_weights.safetensors`, or `rank{r}_clt_weights.safetensors`, with `clt_cfg.json`             | CLT, PLT |
//!
//! Whatever the format, a transcoder is a `Source`: its facts, and for each layer arrays that are read in pieces, so that
//! no more than a layer's vectors and a piece of its matrices are in memory. All of it goes to disk by one writer for each format; our own
//! is [`Transcoder::saved`](circuitlab_core::Transcoder::saved).

mod array;
mod circuit_tracer;
mod clt_forge;
mod find;
mod format;
mod gemma_scope;
mod gemma_scope_two;
mod import;
mod npy;
mod npz;
mod source;
mod write;

pub use format::Format;
pub use import::{ImportRequest, Imported, import};
pub use npz::check as check_npz;
pub(crate) use write::{Target, circuit_tracer_reads, convert};
