//! What all parts of a cache share, and must share for the parts to be one cache.

use circuitlab_core::codec::ChainSpec;
use circuitlab_core::plugin::Provider;
use circuitlab_core::{BlockHook, ModelInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::hook_name;
use crate::text::{SourceRecord, TextRange};
use crate::{Error, Result};

/// What a cache holds and how it came about. Two parts, or a part and the job that goes on with it, agree in all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The model's short name. Not compared: the fingerprint is.
    pub model: String,
    /// The model's family.
    pub family: String,
    /// Tells the model's weights from others.
    pub fingerprint: String,
    /// What the model computed in, such as `f32`.
    pub dtype: String,
    /// Layers of the model.
    pub layers: usize,
    /// Width of a row.
    pub d_model: usize,
    /// The place in each block that inputs are from.
    #[serde(with = "hook_name")]
    pub input_hook: BlockHook,
    /// The place in each block that outputs are from.
    #[serde(with = "hook_name")]
    pub output_hook: BlockHook,
    /// The codec chain, with all settings.
    pub codec: ChainSpec,
    /// Positions of a context.
    pub context: usize,
    /// Tokens of the shortest context, BOS excluded.
    pub min_tokens: usize,
    /// The token that begins each context; without one, contexts begin with their text.
    pub bos: Option<u32>,
    /// The token that was appended to each document; none where nothing was.
    pub eos: Option<u32>,
    /// Whether documents were joined in contexts.
    pub cross_documents: bool,
    /// Shares of the user's paths, where they were mixed, and how many files each path named.
    pub weights: Vec<PathWeight>,
    /// Whether rows of special tokens were left out.
    pub drop_special_rows: bool,
    /// How often the median norm of its layer, side and chunk a row's norm was allowed to be; none where all were.
    pub max_norm: Option<f64>,
    /// The special tokens.
    pub special_tokens: Vec<u32>,
    /// SHA-256 of `tokenizer.json`; none where there is none, because the documents were tokens already.
    pub tokenizer: Option<String>,
    /// The files of text.
    pub text: Vec<SourceRecord>,
    /// The part of each file.
    pub range: TextRange,
    /// Seed of the order of contexts and rows.
    pub seed: u64,
    /// How many jobs share the documents.
    pub jobs: usize,
    /// About how many rows a chunk has.
    pub chunk_rows: usize,
    /// Contexts that went through the model at once.
    pub batch_contexts: usize,
    /// Who provided the codecs. Not compared: the codecs are.
    #[serde(default)]
    pub providers: Vec<Provider>,
}

/// The share of one of the user's paths.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathWeight {
    /// Its share of the tokens, beside those of the other paths.
    pub weight: f64,
    /// How many of the files are its own.
    pub files: usize,
}

impl Identity {
    /// Checks that `self` agrees with what is there already.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first field that differs; `what` says whose field it is.
    pub fn agree(&self, what: &str, there: &Self) -> Result<()> {
        let (Value::Object(here), Value::Object(there)) = (self.comparable(), there.comparable()) else {
            return Err(Error::Invalid(format!("{what}: the settings are no table")));
        };
        for (field, got) in &here {
            let expected = there.get(field).unwrap_or(&Value::Null);
            if expected != got {
                return Err(Error::mismatch(format!("{what}, `{field}`"), expected, got));
            }
        }
        Ok(())
    }

    /// Checks that activations of this cache are those of a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with what differs.
    pub fn check_model(&self, model: &ModelInfo) -> Result<()> {
        let same = [
            ("family", self.family.clone(), model.family.clone()),
            ("layers", self.layers.to_string(), model.layers.to_string()),
            ("d_model", self.d_model.to_string(), model.d_model.to_string()),
            ("fingerprint", self.fingerprint.clone(), model.fingerprint.clone()),
        ];
        same.into_iter().try_for_each(|(field, expected, got)| {
            let what = || format!("the cache is of the model `{}`, not of `{}`: {field}", self.model, model.name);
            if expected == got { Ok(()) } else { Err(Error::mismatch(what(), expected, got)) }
        })
    }

    /// All but names and places, which may change while the cache stays the same.
    pub(super) fn comparable(&self) -> Value {
        let mut same = self.clone();
        same.model.clear();
        same.providers.clear();
        same.text.iter_mut().for_each(|record| record.path.clear());
        // A struct of plain data is always JSON.
        serde_json::to_value(same).unwrap_or(Value::Null)
    }
}
