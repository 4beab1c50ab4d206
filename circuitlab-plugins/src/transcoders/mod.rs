//! Transcoders. `clt` and `plt` are one linear dictionary that differ in which layers a feature writes to, and in the files
//! that circuit-tracer expects of them.

mod clt;
mod dictionary;
mod files;
mod linear;
mod plt;
mod step;

pub use clt::{CltConfig, CrossLayer};
pub use linear::Linear;
pub use plt::{PerLayer, PltConfig};
