//! `circuitlab attribute`.

use std::path::PathBuf;

use circuitlab::graph::Look;
use clap::Args;

use super::train::bytes;
use super::{ModelPlace, ThresholdArgs};

/// Computes the attribution graph of a prompt: which features, errors and tokens made the model say what it said. Writes the graph for viewers,
/// pruned, and beside it the whole one, `.safetensors`, which `graph prune` takes at other thresholds.
#[derive(Debug, Args)]
pub struct AttributeArgs {
    /// Transcoder folder: a run's `final` or one of its checkpoints, or circuit-tracer's.
    #[arg(long, value_name = "CLT")]
    pub clt: PathBuf,
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// The prompt.
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["tokens", "prompts"], conflicts_with_all = ["tokens", "prompts"])]
    pub prompt: Option<String>,
    /// Token ids in place of a text, such as `0,5,9`, taken as they are.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "prompts")]
    pub tokens: Vec<u32>,
    /// A file of prompts, one in each line that is not empty, in place of one; `--out` is then a folder.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Begin prompts without the model's BOS.
    #[arg(long)]
    pub no_bos: bool,
    /// The graph for viewers to write, such as `graph.json`; or a folder that is there, into which `SLUG.json` is written and entered in its
    /// `graph-metadata.json`. The whole graph, with its matrix, is written beside it, as `.safetensors`.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub out: PathBuf,
    /// The graph's name. Default: that of the file to write; in a folder `prompt`. Those of a file of prompts are numbered.
    #[arg(long, value_name = "SLUG")]
    pub slug: Option<String>,
    /// Of one prompt: write all that was computed into one file too, activations, patterns, influences and what was kept beside the matrix.
    #[arg(long, value_name = "FILE", conflicts_with = "prompts")]
    pub tensors: Option<PathBuf>,
    /// What is explained.
    #[command(flatten)]
    pub explained: ExplainedArgs,
    /// How much to keep for viewers.
    #[command(flatten)]
    pub thresholds: ThresholdArgs,
    /// Features that get rows at most, those of most influence first.
    #[arg(long, default_value_t = 7500, value_name = "COUNT")]
    pub max_feature_nodes: usize,
    /// Features are chosen in batches of so many, times `--update-interval`; then influences are updated.
    #[arg(long, default_value_t = 256, value_name = "COUNT")]
    pub batch_size: usize,
    /// Batches between updates of influences.
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    pub update_interval: usize,
    /// Have nodes for biases, positions, special positions and features that are not nodes too, so that rows sum to what they explain.
    #[arg(long)]
    pub closing: bool,
    /// Split the kept edges between positions over attention heads, into `.heads.safetensors` beside the graph: `edges` (target and source
    /// nodes), `weights`, and `loadings` by layer and head, which sum to the weights.
    #[arg(long)]
    pub heads: bool,
    /// Trace why a head looks from one position to another: its score before the softmax as a sum over pairs of sources. May be given again.
    #[arg(long, value_name = "LAYER/HEAD/QUERY/KEY", value_parser = look)]
    pub qk: Vec<Look>,
    /// Trace, for the kept nodes of most influence, the look of the head that carries most into each, and write it into the graph for viewers
    /// (`qk_tracing_results`).
    #[arg(long, default_value_t = 0, value_name = "NODES")]
    pub qk_nodes: usize,
    /// Pairs, and marginals of each side, that a trace names.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub qk_top: usize,
    /// Memory to compute in, beside model and transcoder.
    #[arg(long, default_value = "1GiB", value_name = "BYTES", value_parser = bytes)]
    pub memory: u64,
    /// Threads of CPU products. Default: the number of cores.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<i32>,
}

/// What a graph explains. By default the likeliest tokens.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is explained")]
pub struct ExplainedArgs {
    /// The likeliest tokens, at most so many.
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    pub max_n_logits: usize,
    /// The likeliest tokens that just reach this share of the probability together.
    #[arg(long, default_value_t = 0.95, value_name = "SHARE", allow_negative_numbers = true)]
    pub desired_logit_prob: f64,
    /// A token, by its text, such as ` lord`, or by its id, such as `#253`; may be given again.
    #[arg(long, value_name = "TEXT|#ID")]
    pub target: Vec<String>,
    /// The logit of one token less that of another.
    #[arg(long, num_args = 2, value_names = ["TEXT|#ID", "TEXT|#ID"], action = clap::ArgAction::Append)]
    pub difference: Vec<String>,
    /// A direction in what the unembedding reads: a tensor `[d_model]` of a safetensors file, and how much it counts beside other targets.
    #[arg(long, value_name = "FILE:TENSOR[=WEIGHT]")]
    pub direction: Vec<String>,
}

fn look(text: &str) -> Result<Look, String> {
    let numbers: Option<Vec<usize>> = text.split('/').map(|number| number.parse().ok()).collect();
    match numbers.as_deref() {
        Some([layer, head, query, key]) => Ok(Look { layer: *layer, head: *head, query: *query, key: *key }),
        _ => Err("expected LAYER/HEAD/QUERY/KEY, such as `2/0/7/3`".to_owned()),
    }
}
