//! How good a graph is.

use serde::{Deserialize, Serialize};

/// How much of what a model does its graph's features explain. Both are 1 where there are no errors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The share of all influence that comes from tokens through features, rather than from errors: tokens' over tokens' and errors'.
    pub replacement: f64,
    /// The share of what flows into nodes that does not come from errors, each node weighted by its influence.
    pub completeness: f64,
}
