//! SVG plots of a run, drawn from its records.
//!
//! [`write`](write()) draws `loss`, `explained_variance`, `l0`, `dead_features`, `schedule` and `throughput`, as far as
//! the records hold their figures.

mod axis;
mod chart;
mod series;
mod write;

pub use write::write;
