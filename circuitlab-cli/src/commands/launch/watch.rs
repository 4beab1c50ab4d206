//! Starts the ranks, passes signals on to them, and waits for all of them.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::outcome;
use super::ranks::{Ranks, Start};
use crate::args::{Cli, Command, LaunchArgs};
use crate::output::Bars;

/// How long ranks have to say their own error when another failed: theirs may be the one that tells why.
const GRACE: Duration = Duration::from_secs(10);

/// How often it is looked whether a rank has ended.
const TICK: Duration = Duration::from_millis(10);

/// Runs `args.command` as so many ranks.
///
/// # Errors
/// [`RankFailed`](super::RankFailed) when one fails; ranks that cannot be started.
pub(in crate::commands) fn run(args: &LaunchArgs, cli: &Cli, bars: &Bars) -> anyhow::Result<()> {
    let arguments = [cli.globals(), args.command.clone()].concat();
    // A slip is told once, and not by every rank.
    let parsed = Cli::try_parse_from(std::iter::once("circuitlab".into()).chain(arguments.clone()));
    if let Command::Launch(_) = parsed.unwrap_or_else(|slip| slip.exit()).command {
        return Err(anyhow!("`launch` starts the ranks of another command, such as `train`, and not of `launch`"));
    }
    let master_port = args.master_port.map_or_else(free_port, Ok)?;
    // Before there is a rank that it could miss to end.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGUSR1]).context("cannot listen to signals")?;
    let bars = Arc::new(bars.beside());
    let mut ranks = Ranks::start(&Start { ranks: args.ranks, master_port, arguments }, &bars)?;
    while ranks.are_there() {
        sleep(TICK);
        for signal in signals.pending() {
            ranks.pass_on(signal);
        }
        ranks.look()?;
        if ranks.failed.is_some_and(|at| at.elapsed() > GRACE) {
            ranks.kill();
        }
    }
    ranks.hear_out();
    bars.abandon();
    outcome::of(&ranks.ends())
}

/// A port that nobody listens at, let go for the rank that will.
fn free_port() -> anyhow::Result<u16> {
    let place = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(place.context("cannot find a free port on 127.0.0.1; give one by --master-port")?.port())
}
