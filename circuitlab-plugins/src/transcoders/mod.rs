//! Transcoders. `clt` and `plt` are one linear dictionary that differ in which layers a feature writes to, and in the files
//! that circuit-tracer expects of them.

mod clt;
mod dictionary;
mod files;
mod plt;
mod step;

pub use clt::{Clt, CltConfig};
pub use plt::{Plt, PltConfig};
