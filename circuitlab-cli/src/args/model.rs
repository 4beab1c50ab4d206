//! `circuitlab model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ChangeArgs, PromptArgs};

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
    /// The model's attention is sparse: each softmax pattern is multiplied by 1 where the score is above 0 and by 0 elsewhere. A
    /// `config.json` with `attention_gate = true` says the same.
    #[arg(long)]
    pub attention_gate: bool,
}

/// Look at a language model.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Print what is known of a model: sizes, memory, hook points.
    Show(ShowArgs),
    /// Run tokens through a model and write its activations.
    Activations(ActivationsArgs),
    /// Continue a text.
    Generate(Box<GenerateArgs>),
}

/// `model generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// What is continued.
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Tokens to add at most; a token that ends a text ends it before.
    #[arg(long, default_value_t = 64, value_name = "COUNT")]
    pub max_tokens: usize,
    /// What logits are divided by; 0 takes the likeliest token always.
    #[arg(long, default_value_t = 1.0, value_name = "NUMBER")]
    pub temperature: f64,
    /// Draw among so many of the likeliest tokens. Default: all.
    #[arg(long, value_name = "COUNT")]
    pub top_k: Option<usize>,
    /// Draw among the likeliest tokens that have this share of the probability together. Default: 1.
    #[arg(long, value_name = "SHARE")]
    pub top_p: Option<f64>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    pub seed: u64,
    /// Transcoder folder whose features are changed while the text goes on; changes at open positions, such as `2:`, go on with it.
    #[arg(long, value_name = "CLT")]
    pub clt: Option<PathBuf>,
    /// What is changed.
    #[command(flatten)]
    pub changes: ChangeArgs,
    /// With `--clt`: safetensors file to write: `gen_tokens`, `gen_logits` (a row for each token, which it was drawn from), `gen_act_idx`
    /// and `gen_act_val`.
    #[arg(long, value_name = "FILE", requires = "clt")]
    pub tensors: Option<PathBuf>,
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
