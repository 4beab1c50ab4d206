//! `circuitlab plugins`, and the loading of plugin libraries for every command.

mod check;
mod list;
mod load;
mod new;
mod show;
mod template;

use super::Context;
use crate::args::PluginsCommand;

pub(crate) use load::load;

pub(super) fn run(command: &PluginsCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        PluginsCommand::List => list::run(context),
        PluginsCommand::Show(args) => show::run(args, context),
        PluginsCommand::Check(args) => check::run(args, context),
        PluginsCommand::New(args) => new::run(args, context),
        PluginsCommand::Probe(args) => load::try_here(&args.file),
    }
}
