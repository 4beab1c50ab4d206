//! The suite of parallelism strategies.
//!
//! Every rank is a thread with a strategy object of its own, so what is checked is what ranks in processes of their own would
//! see, whatever carries their sums.

mod conforms;
mod crew;
mod step;
mod sums;

pub use conforms::conforms;
