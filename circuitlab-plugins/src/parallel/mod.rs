//! Parallelism strategies.

mod single;

pub use single::{Single, SingleConfig};
