//! `circuitlab model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Which model, where and in what type.
#[derive(Debug, Clone, Args)]
pub struct ModelPlace {
    /// Folder of a Hugging Face model (config.json, safetensors, tokenizer.json), or `hf:ORG/NAME[@REVISION]`, which is fetched once
    /// into the cache of `HF_HOME`; `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE=1` and `HF_HUB_DOWNLOAD_TIMEOUT` (seconds) count.
    #[arg(long, value_name = "DIR|hf:ORG/NAME")]
    pub model: PathBuf,
    /// Where the model runs: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// The type that the model computes in: f32, bf16, f16 or f64.
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub dtype: String,
}

/// Look at a language model.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Print what is known of a model: sizes, memory, hook points.
    Show(ShowArgs),
    /// Run tokens through a model and write its activations.
    Activations(ActivationsArgs),
}

/// `model show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Folder of a Hugging Face model, or `hf:ORG/NAME[@REVISION]`.
    #[arg(value_name = "DIR|hf:ORG/NAME")]
    pub model: PathBuf,
}

/// `model activations`.
#[derive(Debug, Args)]
pub struct ActivationsArgs {
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// Safetensors file with `tokens`, int64 [batch, position].
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// Safetensors file to write: `tokens`, `logits`, and `resid_mid`, `mlp_in`, `mlp_out`, `resid_post`, `attn_pattern` of each layer.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}
