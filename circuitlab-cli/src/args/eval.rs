//! `circuitlab eval`.

use std::path::PathBuf;

use clap::Args;

use super::{ModelPlace, TextArgs};

/// Evaluates a transcoder on all rows of the text but those of special tokens; what `max_norm` left out of a cache counts here. With
/// `--faithfulness` on prompts instead.
#[derive(Debug, Args)]
#[command(mut_arg("paths", |arg| arg.required(false).required_unless_present("faithfulness")))]
pub struct EvalArgs {
    /// Transcoder folder: a run's `final` or one of its checkpoints, or circuit-tracer's. With `--faithfulness` it may be given again, for
    /// transcoders side by side.
    #[arg(long, value_name = "CLT", required = true)]
    pub clt: Vec<PathBuf>,
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// The text, which should not be the text that was trained on.
    #[command(flatten)]
    pub text: TextArgs,
    /// Positions of a context, BOS included.
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    pub context: usize,
    /// Contexts to stop after. Default: all.
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    pub max_contexts: Option<usize>,
    /// Contexts in a batch.
    #[arg(long, default_value_t = 32, value_name = "COUNT", value_parser = at_least_one)]
    pub batch_contexts: usize,
    /// Prompts in place of a text.
    #[command(flatten)]
    pub prompts: FaithfulnessArgs,
}

/// Prompts to be faithful on.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "On prompts")]
pub struct FaithfulnessArgs {
    /// File of prompts, one in a line: for each the scores of its graph, what predictions lose with all MLPs replaced, and whether changed
    /// features change later ones and logits as the graph says.
    #[arg(long, value_name = "PROMPTS", conflicts_with_all = ["paths", "text_field", "skip_bad_lines", "range", "context", "max_contexts", "batch_contexts"])]
    pub faithfulness: Option<PathBuf>,
    /// Features that are doubled and ablated on each prompt.
    #[arg(long, default_value_t = 16, value_name = "COUNT", conflicts_with = "paths")]
    pub perturbed_features: usize,
    /// Seed of their choice.
    #[arg(long, default_value_t = 0, value_name = "NUMBER", conflicts_with = "paths")]
    pub seed: u64,
    /// No more features than so many are nodes of a graph, those of most influence; without the others predictions
    /// miss what goes through them.
    #[arg(long, default_value_t = 7500, value_name = "COUNT", conflicts_with = "paths", value_parser = at_least_one)]
    pub max_feature_nodes: usize,
    /// Begin prompts without the model's BOS.
    #[arg(long, conflicts_with = "paths")]
    pub no_bos: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a whole number above 0".to_owned())
}
