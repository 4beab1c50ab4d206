//! `circuitlab plugins`.

use clap::Subcommand;

/// Plugins.
#[derive(Debug, Subcommand)]
pub enum PluginsCommand {
    /// List every plugin by kind and name.
    List,
}
