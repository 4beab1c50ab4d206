//! `circuitlab eval`.

use std::path::PathBuf;

use clap::Args;

use super::{ModelPlace, TextArgs};

/// Evaluates a transcoder on all rows of the text but those of special tokens; what `max_norm` left out of a cache counts here.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Transcoder folder: a run's `final` or one of its checkpoints, or circuit-tracer's.
    #[arg(long, value_name = "CLT")]
    pub clt: PathBuf,
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
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a whole number above 0".to_owned())
}
