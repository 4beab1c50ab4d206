//! `circuitlab export`.

use std::path::PathBuf;

use circuitlab::formats::Format;
use circuitlab_core::config::FloatKind;
use clap::Args;

/// Takes a transcoder out of a run or a checkpoint, into a folder that circuit-tracer reads or into files of another tool. It needs one process and little memory, however
/// large the transcoder and however many ranks trained it.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run folder, whose `final` is taken or else its newest checkpoint; or a checkpoint, or any transcoder folder.
    #[arg(long, value_name = "RUN|CHECKPOINT")]
    pub from: PathBuf,
    /// The folder to make.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// The type of its numbers: `f32`, `bf16`, `f16` or `f64`. Default: as they are.
    #[arg(long, value_name = "TYPE", value_parser = float)]
    pub dtype: Option<FloatKind>,
    /// Whose files to write: `circuitlab`, `circuit-tracer`, `gemma-scope`, `gemma-scope-2` or `clt-forge`. A format that cannot hold the
    /// transcoder is refused.
    #[arg(long, value_name = "FORMAT", default_value = "circuitlab", value_parser = format)]
    pub format: Target,
}

/// Whose files to write; our own where it is nobody else's.
#[derive(Debug, Clone, Copy)]
pub struct Target(pub Option<Format>);

fn format(text: &str) -> Result<Target, String> {
    if text == "circuitlab" { Ok(Target(None)) } else { text.parse().map(|format| Target(Some(format))) }
}

pub(super) fn float(text: &str) -> Result<FloatKind, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected f32, bf16, f16 or f64".to_owned())
}
