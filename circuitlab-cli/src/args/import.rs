//! `circuitlab import`.

use std::path::PathBuf;

use circuitlab::formats::Format;
use circuitlab_core::BlockHook;
use circuitlab_core::config::FloatKind;
use clap::Args;

use super::export::float;

/// Takes a transcoder of another tool in: circuit-tracer, Gemma Scope 1 and 2, CLT-Forge. All shapes are checked against each other, and
/// numbers that are none are refused.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The tool's folder.
    #[arg(long, value_name = "FOLDER")]
    pub from: PathBuf,
    /// The folder to make, which all commands take as `--clt`.
    #[arg(long, value_name = "CLT")]
    pub out: PathBuf,
    /// Whose folder it is: `auto`, `circuit-tracer`, `gemma-scope`, `gemma-scope-2` or `clt-forge`.
    #[arg(long, value_name = "FORMAT", default_value = "auto", value_parser = format)]
    pub format: Origin,
    /// The language model's folder. Its sizes are compared, and the transcoder belongs to these weights from then on.
    #[arg(long, value_name = "FOLDER")]
    pub model: Option<PathBuf>,
    /// Where it reads and writes in a block, such as `mlp.hook_in,hook_mlp_out`. Default: as the folder says, or its tool has it.
    #[arg(long, value_name = "IN,OUT", value_parser = hooks)]
    pub hooks: Option<Hooks>,
    /// The type of its numbers: `f32`, `bf16`, `f16` or `f64`. Default: as they are.
    #[arg(long, value_name = "TYPE", value_parser = float)]
    pub dtype: Option<FloatKind>,
}

/// Whose folder it is, where that is said.
#[derive(Debug, Clone, Copy)]
pub struct Origin(pub Option<Format>);

/// Where a transcoder reads and writes.
#[derive(Debug, Clone, Copy)]
pub struct Hooks(pub [BlockHook; 2]);

fn format(text: &str) -> Result<Origin, String> {
    if text == "auto" { Ok(Origin(None)) } else { text.parse().map(|format| Origin(Some(format))) }
}

fn hooks(text: &str) -> Result<Hooks, String> {
    let (input, output) = text.split_once(',').ok_or("expected two places, such as mlp.hook_in,hook_mlp_out")?;
    let hook = |name: &str| name.trim().parse().map_err(|error: circuitlab_core::Error| error.to_string());
    Ok(Hooks([hook(input)?, hook(output)?]))
}
