//! The processes of a launch.

use std::env;
use std::ffi::OsString;
use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::outcome::End;
use crate::commands::resume::LAUNCHED;
use crate::output::Bars;
use crate::output::news::{KEEP, TELL, VARIABLE};
use crate::output::relay::Relay;

/// How long it is waited for what ranks said before they ended. A process that they left behind may hold their stderr open for longer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What is started.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) ranks: u32,
    /// Where they meet, on 127.0.0.1.
    pub(super) master_port: u16,
    /// Of this program.
    pub(super) arguments: Vec<OsString>,
}

/// All ranks; those that are still there are killed when this is dropped.
#[derive(Debug)]
pub(super) struct Ranks {
    all: Vec<Rank>,
    /// When the first was seen to have failed.
    pub(super) failed: Option<Instant>,
    /// Told of each rank that has said its last word.
    silent: Receiver<()>,
}

#[derive(Debug)]
struct Rank {
    child: Child,
    end: Option<End>,
    /// When it said what it fails with.
    failed: Arc<OnceLock<Instant>>,
    killed: bool,
}

impl Ranks {
    /// Starts all of them, or none: where one cannot be started the others are killed.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn start(start: &Start, bars: &Arc<Bars>) -> Result<Self> {
        let (said, silent) = channel();
        let mut started = Self { all: Vec::new(), failed: None, silent };
        for rank in 0..start.ranks {
            let one = Rank::start(rank, start, bars, &said);
            started.all.push(one.with_context(|| format!("cannot start rank {rank} of {}", start.ranks))?);
        }
        Ok(started)
    }

    /// Whether one has not ended.
    pub(super) fn are_there(&self) -> bool {
        self.all.iter().any(|rank| rank.end.is_none())
    }

    /// Notes which have ended.
    ///
    /// # Errors
    /// What the system returns.
    pub(super) fn look(&mut self) -> Result<()> {
        for rank in self.all.iter_mut().filter(|rank| rank.end.is_none()) {
            if let Some(status) = rank.child.try_wait().context("cannot wait for a rank")? {
                let at = rank.failed.get().copied().unwrap_or_else(Instant::now);
                if !status.success() {
                    self.failed.get_or_insert_with(Instant::now);
                }
                rank.end = Some(End { status, at, killed: rank.killed });
            }
        }
        Ok(())
    }

    /// Sends a signal to all that are there.
    pub(super) fn pass_on(&self, signal: i32) {
        let Some(signal) = Signal::from_named_raw(signal) else { return };
        for (number, rank) in self.all.iter().enumerate().filter(|(_, rank)| rank.end.is_none()) {
            if let Err(error) = kill_process(rank.pid(), signal) {
                tracing::debug!("rank {number} does not get {signal:?}: {error}");
            }
        }
    }

    /// Ends all that are there, with whatever they started.
    pub(super) fn kill(&mut self) {
        for rank in self.all.iter_mut().filter(|rank| rank.end.is_none() && !rank.killed) {
            rank.killed = true;
            // It was not waited for yet, so that the number is still its own.
            if let Err(error) = kill_process_group(rank.pid(), Signal::KILL) {
                tracing::debug!("cannot kill a rank: {error}");
            }
        }
    }

    /// Waits for the last lines of all.
    pub(super) fn hear_out(&self) {
        let until = Instant::now() + LAST_WORDS;
        for _ in &self.all {
            if self.silent.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
                return;
            }
        }
    }

    /// How each of them ended.
    pub(super) fn ends(&self) -> Vec<End> {
        self.all.iter().filter_map(|rank| rank.end).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.kill();
        for rank in self.all.iter_mut().filter(|rank| rank.end.is_none()) {
            let _ = rank.child.wait();
        }
    }
}

impl Rank {
    fn start(number: u32, start: &Start, bars: &Arc<Bars>, said: &Sender<()>) -> Result<Self> {
        let mut command = command(number, start)?;
        let mut child = command.spawn()?;
        let relay = Relay::new(number, Arc::clone(bars));
        let failed = relay.failed();
        let (stderr, said) = (child.stderr.take(), said.clone());
        let rank = Self { child, end: None, failed, killed: false };
        let listen = move || {
            if let Some(stderr) = stderr {
                relay.run(stderr);
            }
            // Where nobody waits any more, nobody needs to know.
            let _ = said.send(());
        };
        if let Err(error) = thread::Builder::new().name(format!("rank {number}")).spawn(listen) {
            drop(Ranks { all: vec![rank], failed: None, silent: channel().1 });
            return Err(error.into());
        }
        Ok(rank)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

fn command(rank: u32, start: &Start) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("this program is not found")?);
    if let Some(name) = env::args_os().next() {
        // What it calls itself by, as in the command line that it prints.
        command.arg0(name);
    }
    let (ranks, rank_text) = (start.ranks.to_string(), rank.to_string());
    command.args(&start.arguments).env("RANK", &rank_text).env("LOCAL_RANK", rank_text);
    command.env("WORLD_SIZE", &ranks).env("LOCAL_WORLD_SIZE", &ranks).env(LAUNCHED, ranks);
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", start.master_port.to_string());
    command.env(VARIABLE, if rank == 0 { TELL } else { KEEP });
    if env::var_os("OMP_NUM_THREADS").is_none() {
        command.env("OMP_NUM_THREADS", threads(start.ranks).to_string());
    }
    // Results are those of the first; a terminal's keys go to this process alone, which passes on what they mean.
    command.stdin(Stdio::null()).stdout(if rank == 0 { Stdio::inherit() } else { Stdio::null() }).stderr(Stdio::piped());
    command.process_group(0);
    end_with_this_process(&mut command);
    Ok(command)
}

/// Each rank's part of the cores.
fn threads(ranks: u32) -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    (cores / ranks as usize).max(1)
}

/// Lets the process be killed when this one ends, however it ends.
#[cfg(target_os = "linux")]
fn end_with_this_process(command: &mut Command) {
    use rustix::io::Errno;
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};

    let launcher = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The launching process may have ended before that.
        if getppid() == Some(launcher) { Ok(()) } else { Err(Errno::CHILD.into()) }
    };
    #[allow(unsafe_code, reason = "only the process itself can ask for it, and it must have asked before anything of it can hang")]
    // SAFETY: between fork and exec the closure makes two system calls; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(ask);
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_this_process(_: &mut Command) {}
