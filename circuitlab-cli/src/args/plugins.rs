//! `circuitlab plugins`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Plugins.
#[derive(Debug, Subcommand)]
pub enum PluginsCommand {
    /// List every plugin by kind and name.
    List,
    /// Print what a plugin does and its settings.
    Show(PluginsShowArgs),
    /// Say whether plugin libraries can be loaded by this program, or exactly what differs.
    Check(PluginsCheckArgs),
    /// Make a plugin crate that builds and whose tests pass.
    New(PluginsNewArgs),
    /// Load a library as a trial: what ends this process would have ended another.
    #[command(hide = true)]
    Probe(PluginsProbeArgs),
}

/// `plugins show`.
#[derive(Debug, Args)]
pub struct PluginsShowArgs {
    /// The plugin's name, such as `int8`, or its kind and name where two kinds share it, such as `codec/none`.
    #[arg(value_name = "[KIND/]NAME")]
    pub name: String,
}

/// `plugins check`.
#[derive(Debug, Args)]
pub struct PluginsCheckArgs {
    /// The libraries, or folders of them; each is tried beside the ones before it.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

/// `plugins new`.
#[derive(Debug, Args)]
pub struct PluginsNewArgs {
    /// The plugin's kind: `codec`, `activation`, `model`, `strategy`, `text-source` or `metric-sink`.
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// The plugin's name, in kebab case, which becomes that of its crate and folder too.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The crate's folder. Default: NAME.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A clone of CircuitLab that the crate is built against. Default: the one that this program was built from.
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
}

/// `plugins probe`.
#[derive(Debug, Args)]
pub struct PluginsProbeArgs {
    /// The library.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
