//! Graphs beside those of circuit-tracer and beside a plain statement of the same.

mod attribute;
mod dense;
mod oracle;
mod prune;

pub(super) use dense::{Dense, plain_prune, random};
