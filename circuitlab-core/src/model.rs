//! Language models: what is known of one, and how it runs.

use std::fmt::Debug;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::config::{DeviceName, FloatKind};
use crate::{FrozenPass, HookPoint, HookVisitor, Result};

/// What a model family's plugin is built from: a Hugging Face folder (`config.json`, one or many safetensors files) and
/// where and how to compute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// The folder.
    pub path: PathBuf,
    /// Where the model runs. Default: `cpu`.
    #[serde(default)]
    pub device: DeviceName,
    /// The type that the model computes in. Default: `f32`.
    #[serde(default)]
    pub dtype: FloatKind,
    /// What the model is called. Default: the folder's name.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether attention is sparse, as in models post-trained with a gate: each softmax pattern is multiplied by 1 where the score is
    /// above 0 and by 0 elsewhere, without renormalising. Default: no.
    #[serde(default)]
    pub attention_gate: bool,
    /// Whether weights are left on disk, so that a model of any size can be looked at: what is known of it is checked and told,
    /// and running it is an error. Default: no.
    #[serde(default)]
    pub without_weights: bool,
}

impl ModelSource {
    /// A folder, in f32 on the CPU, with all weights and ordinary attention.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let (device, dtype) = (DeviceName::default(), FloatKind::default());
        Self { path: path.into(), device, dtype, name: None, attention_gate: false, without_weights: false }
    }

    /// The model's name for people: the one that was given, or the folder's own.
    pub fn display_name(&self) -> String {
        let folder = || {
            // A path such as `.` has no name of its own.
            let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
            whole.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        self.name.clone().unwrap_or_else(folder)
    }
}

/// What is known of a loaded model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The family's registered name, such as `llama`.
    pub family: String,
    /// A short name for people, [`ModelSource::display_name`]: the folder's name, or that of the repository it came from.
    pub name: String,
    /// Tells one set of weights from another; see the crate that makes it.
    pub fingerprint: String,
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads in a block.
    pub heads: usize,
    /// Key and value heads in a block.
    pub kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Hidden width of the MLP.
    pub d_mlp: usize,
    /// Number of tokens that the model knows.
    pub vocabulary: usize,
    /// Longest context, in tokens.
    pub context: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// The token that begins a text, where the config names one.
    pub bos: Option<u32>,
    /// The token that ends a text, where the config names one.
    pub eos: Option<u32>,
    /// All tokens that end a text, [`eos`](Self::eos) among them: chat models end their turns with others.
    #[serde(default)]
    pub stops: Vec<u32>,
}

/// What a model keeps of tokens that it has seen, so that the next ones cost no more than themselves.
#[derive(Debug, Default)]
pub struct Past {
    /// All tokens so far: `[batch, position]`; nothing before the first.
    pub tokens: Option<Tensor>,
    /// Whatever a model keeps of each layer; ours keep keys and values, `[batch, position, kv_head, d_head]`.
    pub layers: Vec<(Tensor, Tensor)>,
}

impl Past {
    /// How many positions there are so far.
    pub fn positions(&self) -> i64 {
        self.tokens.as_ref().map_or(0, |tokens| tokens.size().get(1).copied().unwrap_or(0))
    }

    /// Adds tokens, `[batch, position]`, and gives all so far.
    ///
    /// # Errors
    /// Tokens of another batch size.
    pub fn push(&mut self, tokens: &Tensor) -> Result<&Tensor> {
        let all = match &self.tokens {
            Some(before) => Tensor::f_cat(&[before, tokens], 1)?,
            None => tokens.shallow_clone(),
        };
        Ok(self.tokens.insert(all))
    }
}

/// A decoder-only language model.
///
/// Conformance is checked by [`testing::model`](crate::testing::model).
pub trait LanguageModel: Debug + Send {
    /// What is known of it. Asked for once.
    fn info(&self) -> &ModelInfo;

    /// Where it runs and what it computes in. Asked for once.
    fn placement(&self) -> (Device, Kind);

    /// The places that a visitor may ask for, in the order of the forward pass. Asked for once.
    fn hook_points(&self) -> Vec<HookPoint>;

    /// Runs `tokens` and shows the visitor every value that it wants.
    ///
    /// # Shapes
    /// `tokens: [batch, position]`, int64; gives `[batch, position, vocabulary]`, or nothing when the visitor stopped the pass.
    ///
    /// # Errors
    /// Tokens outside the vocabulary, contexts longer than the model's, replacements of another shape, and the visitor's own.
    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>>;

    /// Runs tokens that follow those of `past`, adds them to it, shows the visitor what it wants, and gives the logits after the last one,
    /// or nothing when the visitor stopped the pass.
    ///
    /// Unless a model keeps something in `past` that spares it the work, all tokens are run again. Then the visitor is shown values of all
    /// positions so far, and has to change those of earlier ones as it did before; the last positions of a value are always the new ones. A
    /// model that keeps something shows the new positions alone, with attention patterns from these to all keys, and may show the logits
    /// of the last position alone. After an error or a stop `past` is of no further use.
    ///
    /// # Shapes
    /// `tokens: [batch, position]`, int64; gives `[batch, vocabulary]`.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward), the context counted from the first token of `past`.
    fn extend(&self, tokens: &Tensor, past: &mut Past, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        let logits = self.forward(past.push(tokens)?, visitor)?;
        Ok(logits.map(|logits| logits.f_select(1, -1)).transpose()?)
    }

    /// Runs one prompt, shows the visitor what it wants, and gives the model as it is linear there, for attribution; nothing where the
    /// family does not state it.
    ///
    /// # Shapes
    /// `tokens: [1, position]`, int64.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward), several prompts, and a visitor that stops or replaces.
    fn freeze<'a>(&'a self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<FrozenPass<'a>>> {
        let _ = (tokens, visitor);
        Ok(None)
    }

    /// What kind of architecture it is, as JSON for people to read. Asked for once; may be empty.
    fn description(&self) -> String {
        String::new()
    }
}
