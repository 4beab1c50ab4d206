//! What the command shows: results on stdout; progress, logs and errors on stderr.

pub mod human;
pub mod logging;
pub(crate) mod news;
pub mod progress;
pub(crate) mod relay;
pub mod report;
pub mod stdout;
pub mod table;

pub use progress::Bars;
pub use report::{WithHint, report};
pub use table::Table;
