//! `circuitlab cache`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ModelPlace, TextArgs};

/// Writes a cache, or checks one.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct CacheArgs {
    /// Checks.
    #[command(subcommand)]
    pub command: Option<CacheCommand>,
    /// Writing.
    #[command(flatten)]
    pub write: Option<CacheWriteArgs>,
}

/// Checks of a cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Read every chunk and name all that are damaged.
    Verify(CacheFolderArgs),
    /// Print what a cache holds and which parts are still missing.
    Status(CacheFolderArgs),
}

/// A cache folder.
#[derive(Debug, Args)]
pub struct CacheFolderArgs {
    /// The cache folder.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
}

/// Writing a cache.
#[derive(Debug, Args)]
pub struct CacheWriteArgs {
    /// The model.
    #[command(flatten)]
    pub place: ModelPlace,
    /// The text.
    #[command(flatten)]
    pub text: TextArgs,
    /// The cache folder to write.
    #[arg(long, value_name = "CACHE")]
    pub out: PathBuf,
    /// Positions of a context, BOS included.
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// How activations are stored: `none`, `int8`, `zstd`, or a chain such as `int8+zstd`.
    #[arg(long, value_name = "CODEC")]
    pub codec: Option<String>,
    /// Which share of the work this job does: job I of N.
    #[arg(long, default_value = "1/1", value_name = "I/N")]
    pub job: String,
    /// Go on with a cache that was interrupted.
    #[arg(long)]
    pub resume: bool,
    /// TOML file with further settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one setting, such as `seed=3`; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}
