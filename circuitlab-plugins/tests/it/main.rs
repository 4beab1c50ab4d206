//! The plugins as a program meets them: through the registry, and through the suites of `circuitlab_core::testing`.

mod cases;
mod codecs;
mod forms;
mod models;
mod parallel;
mod sinks;
mod sparsity;
mod text;
mod transcoders;
