//! Activation caches: MLP inputs and outputs of every layer for the tokens of a text, on disk.
//!
//! A cache is a folder of parts, local or in an object store, one for each job that wrote it; a part is a `manifest.json` and chunks. [`build`] writes
//! a part and goes on with one that was broken off, [`Cache`] reads all parts as one, [`Sampler`] says in which order rows
//! are trained on, and [`Loader`] reads them in that order ahead of the trainer.

mod build;
mod chunk;
mod config;
mod duplicates;
mod estimate;
mod gather;
mod identity;
mod kept;
mod loader;
mod made;
mod manifest;
mod mask;
mod memory;
mod open;
mod place;
mod plan;
mod pool;
mod report;
mod rows;
mod sampler;
mod stages;
mod statistics;
mod verify;
mod window;

pub use build::{Summary, build};
pub use chunk::{ChunkReader, RowIndex, Side};
pub use config::{CacheConfig, JobShare};
pub use estimate::{Cost, Estimate, estimate};
pub use identity::{Identity, PathWeight};
pub use loader::{LoadedBatch, Loader, LoaderOptions};
pub use made::Made;
pub use manifest::{ChunkEntry, Manifest};
pub use open::{Cache, Normalisation};
pub(crate) use place::is_url;
pub use plan::{CacheJob, Plan};
pub use report::{CodecReport, LayerReport, Report, ReportOptions, report};
pub use rows::Rows;
pub use sampler::{RowPlace, Sampler, SamplerState, Window};
pub use stages::{Stages, stages};
pub use statistics::Statistics;
pub use verify::{CacheStatus, Damage, PartStatus, status, verify};
