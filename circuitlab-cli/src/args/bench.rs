//! `circuitlab bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Measures.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Seconds of a training step on recorded parameters and rows.
    Step(BenchStepArgs),
}

/// `bench step`.
#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// Safetensors file with `init.*` parameters, `x.0`, `y.0`, and the scalars `lambda`, `mu`, `bandwidth` and `lr`.
    #[arg(value_name = "IN.safetensors")]
    pub input: PathBuf,
    /// Steps that count; one more comes first.
    #[arg(long, default_value_t = 5, value_name = "COUNT")]
    pub steps: usize,
    /// Take dense products throughout, which is the only form there is so far.
    #[arg(long)]
    pub dense: bool,
    /// Threads of CPU products. Default: the number of cores.
    #[arg(long, value_name = "COUNT")]
    pub threads: Option<i32>,
}
