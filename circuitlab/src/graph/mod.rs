//! Attribution graphs: which features, errors and tokens made a model say what it said.
//!
//! A [`Graph`] is a file of [`Nodes`] and of a row for each feature and logit among them: what every other node adds to it. A
//! [`GraphWriter`] writes one row by row, in any order, and whatever reads it takes a row at a time, since a matrix of all nodes may be far
//! larger than the memory. [`Pruned`] says what of it is worth looking at, and [`write_json`] writes that for viewers.

mod attribute;
mod closing;
mod diff;
mod file;
mod heads;
mod influence;
mod json;
mod metadata;
mod nodes;
mod pass;
mod paths;
mod prompt;
mod prune;
mod qk;
mod read;
mod scores;
mod select;
mod sources;
mod store;
mod sweep;
mod targets;
#[cfg(test)]
mod tests;
mod threshold;
mod view;

pub use attribute::{AttributeOptions, Attributed, Attribution};
pub use diff::{GraphDiff, LinkDiff, diff};
pub use file::{Graph, GraphMeta, GraphWriter, Rows};
pub use heads::HeadLoadings;
pub use influence::Influence;
pub use json::{JsonOptions, check_slug, metadata, write_json};
pub use metadata::{GRAPH_LIST, enter, write_into};
pub use nodes::{ActiveFeature, LogitNode, NodeKind, Nodes};
pub use paths::{GraphPath, flow, paths};
pub use prompt::{Prompt, prompts};
pub use prune::{Edge, PruneOptions, Pruned};
pub use qk::{Look, LookParts};
pub use read::GraphFile;
pub use scores::Scores;
pub use targets::{NamedTarget, TargetChoice};
pub use view::{View, ViewLink, ViewNode, node_id, paired};
