//! Language models: what is known of one, and how it runs.

use std::fmt::Debug;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::config::{DeviceName, FloatKind};
use crate::{HookPoint, HookVisitor, Result};

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
}

impl ModelSource {
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
}
