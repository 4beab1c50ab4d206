//! Attribution graphs: which features, errors and tokens made a model say what it said.
//!
//! A [`Graph`] is a file of [`Nodes`] and of a row for each feature and logit among them: what every other node adds to it. A
//! [`GraphWriter`] writes one row by row, in any order, and whatever reads it takes a row at a time, since a matrix of all nodes may be far
//! larger than the memory.

mod attribute;
mod file;
mod influence;
mod nodes;
mod pass;
mod prompt;
mod prune;
mod scores;
mod select;
mod sources;
mod store;
mod sweep;
mod targets;
#[cfg(test)]
mod tests;
mod threshold;

pub use attribute::{AttributeOptions, Attributed, Attribution};
pub use file::{Graph, GraphMeta, GraphWriter, Rows};
pub use influence::Influence;
pub use nodes::{ActiveFeature, LogitNode, NodeKind, Nodes};
pub use prompt::Prompt;
pub use prune::{Edge, PruneOptions, Pruned};
pub use scores::Scores;
pub use targets::{NamedTarget, TargetChoice};
