//! `circuitlab bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ModelPlace;

/// Measures.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Seconds of a training step on recorded parameters and rows.
    Step(BenchStepArgs),
    /// Throughput of codecs, on one thread.
    Codec(BenchCodecArgs),
    /// Tokens per second of a model's forward pass as a cache takes it: inputs and outputs of all MLPs, ended after the last.
    Forward(BenchForwardArgs),
    /// Throughput of a cache's loader, and of what it does.
    Cache(BenchCacheArgs),
    /// Seconds and memory of a prompt's attribution on random weights, beside its bare matrix products.
    Attribute(BenchAttributeArgs),
}

/// `bench attribute`.
#[derive(Debug, Args)]
pub struct BenchAttributeArgs {
    /// Layers of the model.
    #[arg(long, default_value_t = 12, value_name = "COUNT")]
    pub layers: usize,
    /// Width of the residual stream, a multiple of 64.
    #[arg(long, default_value_t = 768, value_name = "COUNT")]
    pub d_model: usize,
    /// Features of each layer.
    #[arg(long, default_value_t = 2048, value_name = "COUNT")]
    pub features: usize,
    /// Tokens of the prompt, which is the model's context too.
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pub tokens: usize,
    /// Active features, of all layers and positions together, as nearly as thresholds allow.
    #[arg(long, default_value_t = 1850, value_name = "COUNT")]
    pub active: usize,
    /// Features that get rows at most, those of most influence first. Default: all.
    #[arg(long, value_name = "COUNT")]
    pub max_feature_nodes: Option<usize>,
    /// Attributions that are measured, each followed by its products.
    #[arg(long, default_value_t = 3, value_name = "COUNT")]
    pub rounds: usize,
    /// Threads of CPU products. Default: the number of cores.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<i32>,
    /// Compute the nodes with which rows sum to what they explain too.
    #[arg(long)]
    pub closing: bool,
}

/// `bench forward`.
#[derive(Debug, Args)]
pub struct BenchForwardArgs {
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// Rows of tokens that go through the model together.
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    pub batch: usize,
    /// Tokens of a row.
    #[arg(long, default_value_t = 128, value_name = "COUNT")]
    pub positions: usize,
    /// Passes that count; one more comes first.
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub rounds: usize,
    /// Threads of CPU products. Default: the number of cores.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<i32>,
    /// Compute the logits too, and capture nothing.
    #[arg(long)]
    pub logits: bool,
}

/// `bench step`.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// Safetensors file with `init.*` parameters, `x.0`, `y.0`, and the scalars `lambda`, `mu`, `bandwidth` and `lr`.
    #[arg(value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// A transcoder, by name or as `{type = "NAME", key = value}`; repeat it to compare. Default: `clt`, or `plt` where the
    /// file holds one.
    #[arg(long, value_name = "NAME")]
    pub transcoder: Vec<String>,
    /// A sparsity activation, likewise. The file's `bandwidth` goes to one that has such a setting. Default: `jumprelu`.
    #[arg(long, value_name = "NAME")]
    pub activation: Vec<String>,
    /// Steps that count; one more comes first.
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub steps: usize,
    /// Take dense products throughout.
    #[arg(long)]
    pub dense: bool,
    /// Print what each stage of the step costs, and what no step is faster than: the encoder's products and one pass over the
    /// optimiser's state, measured in turn with the steps.
    #[arg(long)]
    pub stages: bool,
    /// Threads of CPU products. Default: the number of cores.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<i32>,
}

/// `bench codec`.
#[derive(Debug, Args)]
pub struct BenchCodecArgs {
    /// Codecs or chains: `int8`, `int8+zstd`, or with settings `{type = "int8", block = 32}`, or a list of such.
    #[arg(required = true, value_name = "CODEC")]
    pub codecs: Vec<String>,
    /// Take a tensor of this safetensors file instead of made-up activations.
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "width")]
    pub input: Option<PathBuf>,
    /// The tensor of that file; its last axis is a row. Default: the largest.
    #[arg(long, value_name = "NAME", requires = "input")]
    pub tensor: Option<String>,
    /// Rows of the block; of a file's tensor, the first so many. Default: 4096, or all of the tensor.
    #[arg(long, value_name = "COUNT")]
    pub rows: Option<usize>,
    /// Values of a made-up row.
    #[arg(long, default_value_t = 768, value_name = "COUNT")]
    pub width: usize,
    /// Make up values with heavy tails, as outlier activations have: some are a thousand times larger than most.
    #[arg(long, conflicts_with = "input")]
    pub heavy_tails: bool,
    /// Rounds that count; one more comes first. Each measures every codec once, in rotated order.
    #[arg(long, default_value_t = 21, value_name = "COUNT")]
    pub rounds: usize,
}

/// `bench cache`.
#[derive(Debug, Args)]
pub struct BenchCacheArgs {
    /// The cache, a path or a URL. It is read over and over, so what the system keeps of a local one in memory is read from there.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
    /// Rounds that count; one more comes first.
    #[arg(long, default_value_t = 9, value_name = "COUNT")]
    pub rounds: usize,
    /// Rows of a batch.
    #[arg(long, default_value_t = 4096, value_name = "COUNT")]
    pub batch_rows: usize,
    /// Chunks that are shuffled together.
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    pub window_chunks: usize,
}
