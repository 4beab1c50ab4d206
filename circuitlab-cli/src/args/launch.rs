//! `circuitlab launch`.

use std::ffi::OsString;

use clap::Args;

/// More ranks than this on one machine are a slip of the keyboard.
const MOST_RANKS: i64 = 1024;

/// Starts several processes of one run on this machine: `circuitlab launch --ranks 2 -- train ...`.
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// How many processes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_RANKS))]
    pub ranks: u32,
    /// The port at which the processes meet; one that is free, unless given.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub master_port: Option<u16>,
    /// The command of this program that each of them runs, with its flags.
    #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
