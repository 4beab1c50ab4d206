//! `circuitlab cache`.

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};

use super::{ModelPlace, TextArgs};

/// Writes a cache, or checks one.
#[derive(Debug)]
pub enum CacheArgs {
    /// No subcommand: write.
    Write(Box<CacheWriteArgs>),
    /// `verify` or `status`.
    Check(CacheCommand),
}

// By hand: derived, the flags of writing would be required of the checks too.
impl Args for CacheArgs {
    fn augment_args(command: Command) -> Command {
        let both = CacheCommand::augment_subcommands(CacheWriteArgs::augment_args(command));
        both.args_conflicts_with_subcommands(true).subcommand_negates_reqs(true).subcommand_required(false).arg_required_else_help(false)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for CacheArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if matches.subcommand().is_some() {
            return CacheCommand::from_arg_matches(matches).map(Self::Check);
        }
        CacheWriteArgs::from_arg_matches(matches).map(|write| Self::Write(Box::new(write)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Checks of a cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Read every file and name all that are damaged, parts of other caches, and rows that are there twice.
    Verify(CacheFolderArgs),
    /// Print what a cache holds and which parts are still missing.
    Status(CacheFolderArgs),
    /// Print what the rows are like, and what codecs would make of them.
    Stats(CacheStatsArgs),
}

/// A cache.
#[derive(Debug, Args)]
pub struct CacheFolderArgs {
    /// The cache: a folder, or a URL such as `s3://bucket/cache`.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
}

/// `cache stats`.
#[derive(Debug, Args)]
pub struct CacheStatsArgs {
    /// The cache: a folder, or a URL such as `s3://bucket/cache`.
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,
    /// A codec or chain to encode the rows with; may be given again. Default: `none`, `bf16`, `int8`, `int8+zstd` and `int4+zstd`.
    #[arg(long, value_name = "CODEC")]
    pub codec: Vec<String>,
    /// About how many rows to look at.
    #[arg(long, default_value_t = 50_000, value_name = "COUNT")]
    pub rows: u64,
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
    /// The cache to write: a folder, or a URL such as `s3://bucket/cache`.
    #[arg(long, value_name = "CACHE")]
    pub out: PathBuf,
    /// Shares of the text paths in the tokens of the cache, one for each, such as `0.7,0.3`; nothing is repeated.
    #[arg(long, value_name = "SHARES")]
    pub weights: Option<String>,
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
    /// Write nothing; read the text, measure a sample of it, and say how many rows, bytes and hours the cache would take.
    #[arg(long, conflicts_with = "resume")]
    pub dry_run: bool,
    /// TOML file with further settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one setting, such as `seed=3`; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}
