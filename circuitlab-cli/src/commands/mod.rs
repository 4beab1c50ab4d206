//! What each command does.

mod attribute;
mod bench;
mod cache;
mod cache_stats;
mod demo;
mod eval;
mod export;
mod generate;
mod graph;
mod import;
mod intervene;
#[cfg(unix)]
mod launch;
mod model;
pub(crate) mod plugins;
mod resume;
mod train;

use circuitlab_core::Registry;
use serde::Serialize;

#[cfg(unix)]
pub(crate) use launch::RankFailed;

use crate::args::{Cli, Command};
use crate::output::{Bars, stdout};

/// What every command is given.
pub(crate) struct Context {
    pub(crate) registry: Registry,
    pub(crate) bars: Bars,
    pub(crate) json: bool,
}

impl Context {
    /// Prints a result: as JSON where that was asked for, else as text.
    pub(crate) fn print(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let shown = if self.json { serde_json::to_string_pretty(value)? } else { text() };
        stdout::print(shown.trim_end())
    }
}

/// Runs a command.
pub(crate) fn run(cli: &Cli, context: &Context) -> anyhow::Result<()> {
    match &cli.command {
        Command::Demo(args) => demo::run(args, context),
        Command::Cache(args) => cache::run(args, context),
        Command::Train(args) => train::run(args, context),
        #[cfg(unix)]
        Command::Launch(args) => launch::run(args, cli, &context.bars),
        #[cfg(not(unix))]
        Command::Launch(_) => Err(anyhow::anyhow!("`launch` needs a Unix system; start each rank by itself, with RANK and WORLD_SIZE")),
        Command::Eval(args) => eval::run(args, context),
        Command::Export(args) => export::run(args, context),
        Command::Attribute(args) => attribute::run(args, context),
        Command::Intervene(args) => intervene::run(args, context),
        Command::Graph(command) => graph::run(command, context),
        Command::Import(args) => import::run(args, context),
        Command::Model(command) => model::run(command, context),
        Command::Plugins(command) => plugins::run(command, context),
        Command::Bench(command) => bench::run(command, context),
    }
}
