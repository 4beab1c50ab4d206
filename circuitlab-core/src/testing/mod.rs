//! One conformance suite for each kind of plugin. A plugin crate switches the feature `testing` on in its
//! `[dev-dependencies]` and calls the suite of its kind from one test; first-party plugins go through the same suites.

pub mod activation;
mod adjoint;
pub mod codec;
pub mod explainer;
pub mod metric;
pub mod model;
mod one_rank;
pub mod strategy;
pub mod text;
pub mod transcoder;
