//! `circuitlab export`.

use std::path::PathBuf;

use circuitlab_core::config::FloatKind;
use clap::Args;

/// Takes a transcoder out of a run or a checkpoint, into a folder that circuit-tracer reads. It needs one process and little memory, however
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
}

fn float(text: &str) -> Result<FloatKind, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected f32, bf16, f16 or f64".to_owned())
}
