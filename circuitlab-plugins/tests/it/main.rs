//! Integration tests of the first-party plugins.


mod models;
mod sparsity;

mod transcoders;
