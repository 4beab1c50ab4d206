//! The `circuitlab` command as a library, so that a program with further plugins linked in is three lines:
//!
//! ```no_run
//! // use my_plugin as _;
//! fn main() -> std::process::ExitCode {
//!     circuitlab_cli::main()
//! }
//! ```

/// The README's programs are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

pub mod args;
mod commands;
mod environment;
pub mod output;
mod signals;

use std::process::ExitCode;

use circuitlab_core::Registry;
use circuitlab_core::error::catch_panic;
use clap::Parser;

use args::{Cli, Command};
use output::{Bars, logging, report};

/// Parses the command line, runs it, and gives the exit code: 0 on success, 1 on failure, 2 on wrong usage; of `launch`, that of the first
/// rank that failed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    environment::prepare();
    // What panics is caught and told as an error; the default hook would print a second, longer story.
    std::panic::set_hook(Box::new(|panic| tracing::debug!("{panic}")));
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            exit_code(&error)
        }
    }
}

#[cfg(unix)]
fn exit_code(error: &anyhow::Error) -> ExitCode {
    error.downcast_ref::<commands::RankFailed>().map_or(ExitCode::FAILURE, |rank| ExitCode::from(rank.code))
}

#[cfg(not(unix))]
fn exit_code(_: &anyhow::Error) -> ExitCode {
    ExitCode::FAILURE
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    // Before anything asks libtorch about CUDA: it keeps its first answer.
    if !matches!(cli.command, Command::Launch(_)) {
        circuitlab::device::load_cuda();
    }
    circuitlab_plugins::link();
    let bars = Bars::new(cli.quiet);
    logging::start(cli.verbosity(), bars.multi())?;
    let mut registry = Registry::linked()?;
    commands::plugins::load(cli, &mut registry)?;
    let context = commands::Context { registry, bars, json: cli.json };
    let mut outcome = None;
    catch_panic("circuitlab", || {
        outcome = Some(commands::run(cli, &context));
        Ok::<(), circuitlab_core::Error>(())
    })?;
    outcome.unwrap_or(Ok(()))
}
