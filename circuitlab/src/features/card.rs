//! What is known of one feature.

use serde::{Deserialize, Serialize};

use super::example::{Example, Silence};
use super::histogram::Histogram;

/// How often and how strongly a feature fires on the text. Activations are of the raw scale that the saved transcoder has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Tokens of the text on which it could have fired.
    pub tokens: u64,
    /// Tokens on which its activation is not zero.
    pub firings: u64,
    /// Mean activation over these; 0 where there are none.
    pub mean: f32,
    /// Largest activation; 0 where it never fires.
    pub max: f32,
    /// Smallest activation that is not zero; 0 where it never fires.
    pub min: f32,
    /// All activations that are not zero.
    pub histogram: Histogram,
}

impl Statistics {
    /// The share of tokens on which it fires.
    pub fn frequency(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.firings as f64 / self.tokens as f64 }
    }
}

/// Tokens whose logits a feature raises or lowers most, with what a unit of activation adds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LogitEffects {
    /// The layer that it writes to, or nothing for all that it writes to together.
    pub target: Option<u32>,
    /// Largest first.
    pub top: Vec<(u32, f32)>,
    /// Smallest first.
    pub bottom: Vec<(u32, f32)>,
}

/// Another feature, by its number in the store, that fires on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Coactive {
    /// Its number.
    pub feature: u32,
    /// Tokens of the panel on which both fire.
    pub both: u32,
    /// The same as a share of those on which either fires (Jaccard).
    pub jaccard: f32,
}

/// What a feature's decoder says of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DecoderFacts {
    /// L2 norm of what it writes to each layer, from its first target on.
    pub norms: Vec<f32>,
    /// The first layer that it writes to.
    pub first_target: u32,
    /// Effects on logits: all targets together first, then each. Empty where the model does not say how it is linear.
    pub logits: Vec<LogitEffects>,
    /// Features of the same layer whose decoders point the same way: number and cosine, largest first.
    pub neighbours: Vec<(u32, f32)>,
}

/// Everything that a store has of a feature from the text and the weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Counts and sizes.
    pub statistics: Statistics,
    /// Of the decoder.
    pub decoder: DecoderFacts,
    /// Features that fire with it most, of all layers.
    pub coactive: Vec<Coactive>,
    /// The windows with the highest peaks, highest first.
    pub top: Vec<Example>,
    /// Windows drawn evenly from all in which it fires, highest peaks first.
    pub sample: Vec<Example>,
    /// Windows in which it does not fire, drawn evenly from the panel.
    pub silent: Vec<Silence>,
    /// Windows of the panel in which it does not fire, while a neighbour or a coactive feature does.
    pub near_misses: Vec<Silence>,
}

impl Profile {
    /// The sample in groups of like size by the size of their peaks, lowest first: the quantiles of how strongly it fires in a window.
    pub fn quantiles(&self, parts: usize) -> Vec<&[Example]> {
        let count = self.sample.len();
        let ends = (0..=parts).map(|part| part * count / parts.max(1)).collect::<Vec<_>>();
        ends.windows(2).rev().map(|ends| &self.sample[ends[0]..ends[1]]).filter(|group| !group.is_empty()).collect()
    }
}

/// A feature's label, by whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Its number among all labels.
    pub id: i64,
    /// What it says.
    pub text: String,
    /// The explainer that made it, by its registered name.
    pub explainer: String,
    /// The language model that wrote it, where one did.
    pub model: Option<String>,
    /// Seconds since 1970.
    pub made_at: i64,
}

/// How well a label, or a feature without one, stood a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The label that was tested; nothing where the test needs none.
    pub label: Option<i64>,
    /// Which test, such as `detection`.
    pub kind: String,
    /// Who judged.
    pub judge: String,
    /// The figure; what it is depends on the test.
    pub value: f64,
    /// Bounds between which the figure lies in 95 of 100 resamplings of the examples.
    pub interval: Option<(f64, f64)>,
    /// Everything else that the test gives, verdicts on single examples among it.
    pub detail: serde_json::Value,
}

/// One feature.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// Its layer.
    pub layer: usize,
    /// Its number in the layer.
    pub feature: usize,
    /// From text and weights.
    pub profile: Profile,
    /// The newest first.
    pub labels: Vec<Label>,
    /// The newest first.
    pub scores: Vec<Score>,
}
