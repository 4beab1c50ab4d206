//! Where the figures of a run go: `metrics.jsonl`, TensorBoard event files, and plots made from the former.
//!
//! The trainer fills one [`Record`] per logged step and hands it to [`Sinks`]. Names are paths such as `loss/total`;
//! those that the plots know are in [`names`].

pub mod jsonl;
pub mod names;
pub mod plots;
mod sinks;
pub mod tensorboard;

pub use circuitlab_core::Record;
pub use jsonl::Jsonl;
pub use sinks::{MetricSink, Sinks};
pub use tensorboard::TensorBoard;
