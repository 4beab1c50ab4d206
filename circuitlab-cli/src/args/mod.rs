//! The command line as types; what they do is in `commands`.

mod attribute;
mod bench;
mod cache;
mod demo;
mod eval;
mod export;
mod graph;
mod import;
mod intervene;
mod launch;
mod model;
mod plugins;
mod text;
mod train;

pub use attribute::{AttributeArgs, ExplainedArgs};
pub use bench::{BenchAttributeArgs, BenchCacheArgs, BenchCodecArgs, BenchCommand, BenchForwardArgs, BenchStepArgs};
pub use cache::{CacheArgs, CacheCommand, CacheFolderArgs, CacheStatsArgs, CacheWriteArgs};
pub use demo::DemoArgs;
pub use eval::{EvalArgs, FaithfulnessArgs};
pub use export::ExportArgs;
pub use graph::{GraphCommand, GraphDiffArgs, GraphPruneArgs, GraphScoresArgs, GraphShowArgs, ThresholdArgs};
pub use import::ImportArgs;
pub use intervene::{ChangeArgs, InterveneArgs, PromptArgs};
pub use launch::LaunchArgs;
pub use model::{ActivationsArgs, GenerateArgs, ModelCommand, ModelPlace, ShowArgs};
pub use plugins::{PluginsCheckArgs, PluginsCommand, PluginsNewArgs, PluginsProbeArgs, PluginsShowArgs};
pub use text::TextArgs;
pub use train::TrainArgs;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

/// Cross-layer transcoders: cache a language model's activations, train on them, evaluate.
#[derive(Debug, Parser)]
#[command(name = "circuitlab", version, propagate_version = true)]
pub struct Cli {
    /// Print results as JSON on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on stderr; twice for debugging.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing on stderr but errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Load a plugin library, or all in a folder, before anything else; may be given again. `CIRCUITLAB_PLUGIN_PATH` lists further
    /// ones, and so does `plugins.paths` in a config.
    #[arg(long, global = true, value_name = "FILE")]
    pub plugin: Vec<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// -1 for errors only, 0 for warnings, 1 and above for more.
    pub fn verbosity(&self) -> i8 {
        if self.quiet { -1 } else { i8::try_from(self.verbose).unwrap_or(i8::MAX) }
    }

    /// The flags that stand for all commands, as another process of this program takes them.
    pub(crate) fn globals(&self) -> Vec<OsString> {
        let json = self.json.then(|| "--json".into());
        let quiet = self.quiet.then(|| "--quiet".into());
        let verbose = (0..self.verbose).map(|_| "--verbose".into());
        let plugins = self.plugin.iter().flat_map(|file| ["--plugin".into(), file.into()]);
        json.into_iter().chain(quiet).chain(verbose).chain(plugins).collect()
    }
}

/// The commands, in the order of the pipeline.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole pipeline on the bundled model and text.
    Demo(DemoArgs),
    /// Cache a language model's MLP inputs and outputs; or check a cache.
    Cache(CacheArgs),
    /// Train a transcoder on a cache.
    Train(TrainArgs),
    /// Run a command, such as `train`, by several processes of this machine.
    Launch(LaunchArgs),
    /// Evaluate a transcoder on held-out text.
    Eval(EvalArgs),
    /// Take a transcoder out of a run or a checkpoint.
    Export(ExportArgs),
    /// Compute the attribution graph of a prompt.
    Attribute(AttributeArgs),
    /// Change features on a prompt and see what the model makes of it.
    Intervene(Box<InterveneArgs>),
    /// Prune, score, show and compare attribution graphs.
    #[command(subcommand)]
    Graph(GraphCommand),
    /// Take in a transcoder of another tool.
    Import(ImportArgs),
    /// Look at a language model.
    #[command(subcommand)]
    Model(ModelCommand),
    /// List, describe, check and make plugins.
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Measure speed.
    #[command(subcommand)]
    Bench(BenchCommand),
}
