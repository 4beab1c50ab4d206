//! Integration tests of the first-party plugins.

mod codecs;
mod models;
mod sparsity;
mod text;
mod transcoders;
