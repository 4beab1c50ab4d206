//! What features mean: statistics and examples from a text, what decoders say, labels and their scores.
//!
//! A store ([`FeatureStore`]) has a [`Profile`] of every feature, which is a function of transcoder, model, text and [`BuildSettings`] alone, and
//! labels and scores that are added to it.

mod blocks;
mod card;
mod example;
mod histogram;
mod settings;
mod store;
mod write;

pub use card::{Card, Coactive, DecoderFacts, Label, LogitEffects, Profile, Score, Statistics};
pub use example::{Example, Place, Purpose, Silence};
pub use histogram::{Bin, Histogram};
pub use settings::{BuildSettings, Identity};
pub use store::{FeatureStore, Found};
pub use write::write_store;
