//! What a feature store is made of, and how.

use circuitlab_core::ModelInfo;
use serde::{Deserialize, Serialize};

use crate::text::SourceRecord;
use crate::{Error, Result};

/// How text becomes statistics and examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildSettings {
    /// Positions of a context, BOS included.
    pub context: usize,
    /// Contexts that go through the model together.
    pub batch_contexts: usize,
    /// Tokens of a window: contexts are cut into them, the last of each may be shorter.
    pub window: usize,
    /// Tokens that are kept before the peak of an example, if the context has them.
    pub before: usize,
    /// Tokens that are kept after the peak.
    pub after: usize,
    /// Windows with the highest peaks that are kept of each feature.
    pub top: usize,
    /// Windows that are kept of each feature, drawn evenly from all in which it fires.
    pub sample: usize,
    /// Windows of the whole text of which everything is kept: for coactive features and for windows in which a feature does not fire.
    pub panel: usize,
    /// Windows in which it does not fire that are kept of each feature, of either kind.
    pub silent: usize,
    /// Tokens whose logits are raised or lowered most, and features that are neighbours or coactive.
    pub listed: usize,
    /// What chance depends on.
    pub seed: u64,
}

impl Default for BuildSettings {
    fn default() -> Self {
        Self {
            context: 128,
            batch_contexts: 32,
            window: 32,
            before: 24,
            after: 8,
            top: 20,
            sample: 100,
            panel: 2048,
            silent: 50,
            listed: 10,
            seed: 0,
        }
    }
}

impl BuildSettings {
    /// Checks ranges.
    ///
    /// # Errors
    /// The first that is out of range, with what would be in it.
    pub fn check(&self) -> Result<()> {
        let least_one = [("batch_contexts", self.batch_contexts), ("window", self.window), ("sample", self.sample), ("panel", self.panel)];
        if let Some((name, _)) = least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::Invalid(format!("`{name}` is 0; expected at least 1")));
        }
        // Places in an example are bytes.
        if self.window + self.before + self.after > usize::from(u8::MAX) {
            let sum = self.window + self.before + self.after;
            return Err(Error::Invalid(format!("`window`, `before` and `after` are {sum} tokens together; expected at most 255")));
        }
        Ok(())
    }
}

/// What a store is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// SHA-256 over the transcoder's tensor files.
    pub transcoder: String,
    /// Its layers.
    pub layers: usize,
    /// Its features in each layer.
    pub d_features: usize,
    /// The language model.
    pub model: ModelInfo,
    /// SHA-256 of the tokenizer's file, where there is one.
    pub tokenizer: Option<String>,
    /// The files of text.
    pub texts: Vec<SourceRecord>,
    /// Shares of each file's bytes that were read, as `FROM..TO`.
    pub range: String,
    /// How.
    pub settings: BuildSettings,
}

impl Identity {
    /// How many features there are in all.
    pub fn features(&self) -> usize {
        self.layers * self.d_features
    }

    /// Says of what kind the first difference is.
    ///
    /// # Errors
    /// [`Error::Mismatch`], `what` first.
    pub fn agree(&self, what: &str, there: &Self) -> Result<()> {
        let differs = |of: &str, own: &dyn std::fmt::Display, other: &dyn std::fmt::Display| {
            Err(Error::mismatch(format!("{what}: {of}"), other.to_string(), own.to_string()))
        };
        if self.transcoder != there.transcoder {
            return differs("the transcoder (digest)", &self.transcoder, &there.transcoder);
        }
        if self.model.fingerprint != there.model.fingerprint {
            return differs("the model (fingerprint)", &self.model.fingerprint, &there.model.fingerprint);
        }
        let none = || "none".to_owned();
        if self.tokenizer != there.tokenizer {
            let [own, other] = [self, there].map(|side| side.tokenizer.clone().unwrap_or_else(none));
            return differs("the tokenizer (digest)", &own, &other);
        }
        if self.range != there.range {
            return differs("the range of the text", &self.range, &there.range);
        }
        let texts =
            |side: &Self| side.texts.iter().map(|text| format!("{} {}", text.sha256, text.source.name)).collect::<Vec<_>>().join(", ");
        if texts(self) != texts(there) {
            return differs("the text (digests and readers of its files)", &texts(self), &texts(there));
        }
        if self.settings != there.settings {
            let json = |side: &Self| serde_json::to_string(&side.settings).unwrap_or_default();
            return differs("the settings", &json(self), &json(there));
        }
        Ok(())
    }
}
