//! Ranks that are killed, hang or fail at random moments: the others end and say why, and the run goes on to the bit.

#![allow(clippy::print_stdout, reason = "a failure is looked into by what was done")]

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use circuitlab_tests::moments::Moments;
use circuitlab_tests::{arg, circuitlab};
use rustix::process::{Pid, Signal, kill_process};
use safetensors::tensor::SafeTensors;

use crate::pipeline::{self, SMALL};
use crate::ranks::{as_rank, figures, free_port, weights};

const RANKS: usize = 4;
const STEPS: u32 = 36;

/// Far longer than ranks may take to notice that another is gone, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(2);

/// What becomes of a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// SIGKILL.
    Killed,
    /// SIGKILL while a checkpoint is written.
    KilledAtCheckpoint,
    /// SIGSTOP: it is there and does nothing.
    Stopped,
    /// Its cache goes away, so that it ends with an error of its own.
    Fails,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Stopped, Fault::Fails, Fault::KilledAtCheckpoint];

/// The ranks of a run. None outlives the test.
struct Ranks(Vec<Child>, u16);

impl Ranks {
    fn start(args: impl Fn(usize) -> Vec<String>) -> Self {
        let port = free_port();
        Self((0..RANKS).map(|rank| as_rank(circuitlab(args(rank)), [rank, RANKS], port).spawn().expect("starts")).collect(), port)
    }

    fn all_run(&mut self) -> bool {
        self.0.iter_mut().all(|child| child.try_wait().expect("a child").is_none())
    }

    fn send(&self, rank: usize, signal: Signal) {
        // One that has ended was perhaps waited for, and is nothing to send to.
        let _ = kill_process(Pid::from_child(&self.0[rank]), signal);
    }

    /// How each rank ends but `without`, and what it says; all within [`PATIENCE`].
    fn ends(&mut self, without: Option<usize>) -> Vec<(usize, ExitStatus, String)> {
        let began = Instant::now();
        let mut ends = Vec::new();
        for (rank, child) in self.0.iter_mut().enumerate().filter(|(rank, _)| Some(*rank) != without) {
            let status = loop {
                if let Some(status) = child.try_wait().expect("a child") {
                    break status;
                }
                assert!(began.elapsed() < PATIENCE, "rank {rank} has not ended");
                sleep(Duration::from_millis(5));
            };
            let mut said = String::new();
            child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
            ends.push((rank, status, said));
        }
        ends
    }

    /// Waits for the end, which is a good one.
    fn succeed(mut self) {
        for (rank, status, said) in self.ends(None) {
            assert!(status.success(), "rank {rank}: {status}\n{said}");
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A run under one strategy, and where it is in time.
struct Run<'a> {
    strategy: &'a [&'a str],
    cache: &'a Path,
    out: PathBuf,
    /// When an undisturbed run took its first step, and how long one took.
    first: Duration,
    step: Duration,
}

impl Run<'_> {
    /// Starts the ranks, or goes on with them; `own` is a rank with a cache of its own.
    fn start(&self, own: Option<(usize, &Path)>) -> Ranks {
        let resumed = self.out.join("config.toml").is_file();
        Ranks::start(|rank| {
            let cache = own.filter(|(owner, _)| *owner == rank).map_or(self.cache, |(_, cache)| cache);
            let mut args = vec!["train", "--cache", arg(cache), "--out", arg(&self.out)];
            if resumed {
                args.push("--resume");
            } else {
                let steps = ["--set", "schedule.steps=36", "--set", "metrics.every_steps=1", "--set", "checkpoint.every_steps=3"];
                let waiting = ["--set", "strategy.timeout_seconds=5", "--set", "strategy.join_seconds=10"];
                args.extend(SMALL.into_iter().chain(steps).chain(waiting).chain([
                    "--set",
                    "compute.threads=1",
                    "--set",
                    "data.window_chunks=1",
                ]));
                args.extend(self.strategy);
            }
            args.into_iter().map(str::to_owned).collect()
        })
    }

    /// Runs undisturbed, and sees how long it takes.
    fn whole(&mut self) {
        let (began, mut ranks) = (Instant::now(), self.start(None));
        while ranks.all_run() && !self.out.join("metrics.jsonl").exists() {
            sleep(Duration::from_millis(2));
        }
        self.first = began.elapsed();
        ranks.ends(None).into_iter().for_each(|(rank, status, said)| assert!(status.success(), "rank {rank}: {status}\n{said}"));
        self.step = began.elapsed().saturating_sub(self.first) / STEPS;
    }

    /// Steps that it has figures of.
    fn records(&self) -> u32 {
        fs::read_to_string(self.out.join("metrics.jsonl")).map_or(0, |text| text.lines().count() as u32)
    }

    /// What lies in `checkpoints`, in order; half-written ones end in `.part`.
    fn checkpoints(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.out.join("checkpoints")).into_iter().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    }

    /// The newest checkpoint's step, all of whose files are whole.
    fn newest(&self) -> u32 {
        let Some(checkpoint) = self.checkpoints().into_iter().rfind(|path| !is_part(path)) else { return 0 };
        let mut files = 0;
        for folder in [checkpoint.join("train"), checkpoint.clone()] {
            for path in fs::read_dir(folder).expect("a checkpoint").map(|entry| entry.expect("an entry").path()) {
                if path.extension().is_some_and(|extension| extension == "safetensors") {
                    let bytes = fs::read(&path).expect("a file");
                    SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    files += 1;
                }
            }
        }
        assert!(files > 8, "{} has {files} files", checkpoint.display());
        let name = checkpoint.file_name().expect("a name").to_string_lossy();
        name.trim_start_matches("step-").parse().expect("a step")
    }

    /// Lets a rank have a fault at a random moment, and sees what becomes of the others.
    fn round(&self, fault: Fault, moments: &mut Moments) {
        let victim = moments.below(RANKS);
        let own = self.out.with_extension("cache");
        if fault == Fault::Fails {
            linked(self.cache, &own);
        }
        let taken = self.newest();
        let step = taken + moments.below((STEPS - taken) as usize) as u32;
        let pause = moments.between(Duration::ZERO, self.step);
        let (began, mut ranks) = (Instant::now(), self.start((fault == Fault::Fails).then_some((victim, &own))));
        let mut reached = None;
        let mut is_time = || {
            let starts = began.elapsed() < self.first.mul_f64(0.6) || self.records() < step;
            reached = reached.or((!starts).then(Instant::now));
            let writes = || self.checkpoints().iter().any(|path| is_part(path));
            reached.is_some_and(|then: Instant| then.elapsed() >= pause) && (fault != Fault::KilledAtCheckpoint || writes())
        };
        while ranks.all_run() && !is_time() {
            sleep(Duration::from_millis(1));
        }
        let ran = ranks.all_run();
        match fault {
            Fault::Killed | Fault::KilledAtCheckpoint => ranks.send(victim, Signal::KILL),
            Fault::Stopped => ranks.send(victim, Signal::STOP),
            Fault::Fails => fs::remove_dir_all(&own).expect("removes"),
        }
        let (hit, ends) = (Instant::now(), ranks.ends((fault != Fault::Fails).then_some(victim)));
        let (after, ended) = (hit.duration_since(began), hit.elapsed());
        println!("{fault:?}: rank {victim} after {after:.1?}, the others ended {ended:.1?} later, step {taken} to {}", self.newest());
        if self.out.join("final").exists() || ends.iter().all(|(_, status, _)| status.success()) {
            // It was over, or all but over.
            return;
        }
        assert!(ran, "it failed by itself: {ends:?}");
        for (rank, status, said) in &ends {
            assert!(status.code().is_some_and(|code| code != 0), "rank {rank} of {fault:?} {victim}: {status}\n{said}");
        }
        assert!(ends.iter().any(|(rank, _, said)| *rank != victim && names(said, victim)), "{fault:?} of rank {victim}: {ends:?}");
    }
}

fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "part")
}

/// Whether a rank says which other one is at fault. Rank 0 hosts what they meet at.
fn names(said: &str, victim: usize) -> bool {
    let names = [format!("rank {victim} (127.0.0.1) "), format!("rank {victim} did not come")];
    names.iter().any(|name| said.contains(name))
        || (victim == 0 && (said.contains("store at 127.0.0.1:") || said.contains("store at rank 0")))
}

/// A copy of a cache that takes no room.
fn linked(cache: &Path, copy: &Path) {
    fs::create_dir_all(copy).expect("a folder");
    for entry in fs::read_dir(cache).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let place = copy.join(entry.file_name().expect("a name"));
        if entry.is_dir() { linked(&entry, &place) } else { fs::hard_link(&entry, &place).expect("a link") }
    }
}

/// Does every fault to a run in turn, and compares what it ends with to an undisturbed one.
fn survives(strategy: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &["--set", "chunk_rows=1000"]);
    let mut run = Run { strategy, cache: &cache, out: folder.path().join("whole"), first: Duration::ZERO, step: Duration::ZERO };
    run.whole();
    let (want, want_figures, whole) = (weights(&run.out), figures(&run.out), run.out.clone());
    assert!(want.len() >= 8 && run.checkpoints().len() >= 2);
    println!("first step after {:.1?}, then one in {:.1?}", run.first, run.step);
    run.out = folder.path().join("disturbed");
    let (mut moments, mut hits) = (Moments::new(), 0);
    for fault in FAULTS {
        run.round(fault, &mut moments);
        hits += 1;
        if run.out.join("final").exists() {
            assert!(weights(&run.out) == want && figures(&run.out) == want_figures, "{} and {} differ", run.out.display(), whole.display());
            fs::remove_dir_all(&run.out).expect("removes");
            hits -= 1;
        }
    }
    run.start(None).succeed();
    println!("{hits} of {} faults in the middle of it", FAULTS.len());
    assert!(weights(&run.out) == want, "after {hits} faults");
    assert_eq!(figures(&run.out), want_figures, "after {hits} faults");
}

#[test]
fn ranks_that_fail_under_ddp() {
    survives(&["--strategy", "ddp"]);
}

#[test]
fn ranks_that_fail_under_feature_sharded() {
    survives(&["--strategy", "feature-sharded"]);
}

#[test]
fn ranks_that_fail_under_hybrid() {
    survives(&["--strategy", "hybrid", "--set", "strategy.feature=2"]);
}

#[test]
fn ranks_that_fail_under_fsdp() {
    survives(&["--strategy", "fsdp"]);
}

/// The others wait for it as long as for one that is late.
#[test]
fn ranks_that_are_gone_before_all_have_met() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let strategy = ["--strategy", "ddp", "--set", "strategy.join_seconds=4"];
    let run = Run { strategy: &strategy, cache: &cache, out: folder.path().join("run"), first: Duration::ZERO, step: Duration::ZERO };
    let mut moments = Moments::new();
    for (victim, signal) in [(0, Signal::KILL), (1 + moments.below(RANKS - 1), Signal::KILL), (0, Signal::STOP)] {
        let mut ranks = run.start(None);
        if signal == Signal::STOP {
            // The system goes on to take connections for it.
            while ranks.all_run() && TcpStream::connect(("127.0.0.1", ranks.1)).is_err() {
                sleep(Duration::from_millis(1));
            }
        } else {
            sleep(moments.between(Duration::ZERO, Duration::from_millis(30)));
        }
        ranks.send(victim, signal);
        let ends = ranks.ends(Some(victim));
        println!("rank {victim}: {ends:?}");
        assert!(ends.iter().all(|(_, status, _)| status.code() == Some(1)), "{ends:?}");
        assert!(ends.iter().any(|(_, _, said)| names(said, victim)), "{ends:?}");
        assert!(!run.out.exists(), "nothing is left behind");
    }
}
