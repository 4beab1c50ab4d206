//! The engine of CircuitLab: activation caches, training of cross-layer transcoders, evaluation.
//!
//! It is written against the traits of `circuitlab-core` and names no plugin: what runs is looked up in a
//! [`Registry`](circuitlab_core::Registry) by the names that a config holds.

pub mod cache;
pub mod config;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod features;
pub mod formats;
pub mod generate;
pub mod graph;
pub mod hub;
pub mod intervene;
pub mod model;
pub mod plugins;
pub mod progress;
pub mod recording;
pub mod run;
pub mod saved;
pub mod sink;
pub mod text;
pub mod train;

pub use error::{Error, Result};
pub use progress::{Progress, Silent};
