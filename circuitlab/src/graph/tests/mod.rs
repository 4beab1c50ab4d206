//! Graphs beside those of circuit-tracer and beside a plain statement of the same.

mod attribute;
mod dense;
mod json;
mod oracle;
mod prune;
mod schema;

pub(super) use dense::{Dense, plain_prune, random};
