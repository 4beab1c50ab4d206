//! Integration tests of the first-party plugins.

mod sparsity;
mod transcoders;
