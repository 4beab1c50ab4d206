//! Which benchmark.

use super::{attribute, cache, codec, forward, step};
use crate::args::BenchCommand;
use crate::commands::Context;

pub(in crate::commands) fn run(command: &BenchCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        BenchCommand::Step(args) => step::run(args, context),
        BenchCommand::Codec(args) => codec::run(args, context),
        BenchCommand::Forward(args) => forward::run(args, context),
        BenchCommand::Attribute(args) => attribute::run(args, context),
        BenchCommand::Cache(args) => cache::run(args, context),
    }
}
