//! First-party plugins: what `circuitlab` can do without any other crate.
//!
//! A program that uses them calls [`link`] once, so that the linker keeps this crate and its registrations.

pub mod codecs;
pub mod models;
pub mod parallel;
pub mod sinks;
pub mod sparsity;
pub mod text;
pub mod transcoders;

/// Does nothing; naming it links this crate, and with it every plugin that the crate registers.
pub fn link() {}
