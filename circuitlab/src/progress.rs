//! How long work is going: the engine tells, and whoever embeds it shows.

use std::fmt::Debug;

/// Told of every piece of long work.
pub trait Progress: Debug + Send + Sync {
    /// A new piece of work of `total` units begins; the one before is over.
    fn begin(&self, task: &str, total: u64, unit: &'static str);

    /// So much of it is done, all in all; `note` is a short line of current figures, or empty.
    fn at(&self, done: u64, note: &str);

    /// The piece of work is over.
    fn end(&self);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64, _: &'static str) {}
    fn at(&self, _: u64, _: &str) {}
    fn end(&self) {}
}
