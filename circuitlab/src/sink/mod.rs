//! Where the figures of a run go: metric sinks, which are plugins, and plots made from what the sink `jsonl` writes.
//!
//! The trainer fills one [`Record`] per logged step and hands it to [`Sinks`]. Names are paths such as `loss/total`;
//! those that the plots know are in [`names`].

pub mod jsonl;
pub mod names;
pub mod plots;
mod sinks;

pub use circuitlab_core::Record;
pub use sinks::Sinks;
