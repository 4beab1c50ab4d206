//! Runs that are told to stop, as schedulers do before they take a machine away.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use circuitlab_tests::{arg, bare, circuitlab, json, stderr, succeed};
use rustix::process::{Pid, Signal, kill_process};

use crate::pipeline::{self, SMALL};

/// Longer than any run of these tests takes to begin.
const PATIENCE: Duration = Duration::from_mins(5);

/// Many short steps, on one thread: so that ranks have the same sums however many threads a machine has.
const LONG: [&str; 8] =
    ["--set", "schedule.steps=1500", "--set", "metrics.every_steps=1", "--set", "checkpoint.every_steps=700", "--set", "compute.threads=1"];

fn train_args<'a>(cache: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "--cache", arg(cache), "--out", arg(out)];
    args.extend(SMALL.into_iter().chain(LONG));
    args.extend(more);
    args
}

fn started(mut command: Command) -> Child {
    // The program starts itself again without this.
    command.env("OMP_WAIT_POLICY", "PASSIVE").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it is there, at least unwaited for");
}

/// Waits until a run has taken a step.
fn wait_for_steps(run: &Path) {
    let began = Instant::now();
    while fs::read(run.join("metrics.jsonl")).map_or(true, |records| records.is_empty()) {
        assert!(began.elapsed() < PATIENCE, "no step in {}", run.display());
        sleep(Duration::from_millis(2));
    }
}

/// What a run that was told to stop said on stdout, when it has.
fn stopped(child: Child) -> String {
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// The step in `stopped after step 1 234, with ..`.
fn step(said: &str) -> u64 {
    let rest = said.strip_prefix("stopped after step ").expect(said);
    rest.split_once(',').expect(said).0.replace(' ', "").parse().expect(said)
}

/// Names and bytes of a run's result.
fn result(run: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(run.join("final")).expect("a result").map(|entry| entry.expect("an entry").path());
    let named = |path: &Path| path.strip_prefix(run).expect("below").to_path_buf();
    let mut files: Vec<_> = files.map(|path| (named(&path), fs::read(&path).expect("a file"))).collect();
    files.sort();
    assert!(files.len() >= 8);
    files
}

#[test]
fn a_run_stops_with_a_checkpoint_and_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let whole = folder.path().join("whole");
    succeed(&train_args(&cache, &whole, &[]));

    for (signal, launched) in [(Signal::TERM, false), (Signal::USR1, true)] {
        let out = folder.path().join(format!("it's {launched}"));
        let args = train_args(&cache, &out, &[]);
        let launch: &[&str] = if launched { &["launch", "--ranks", "1", "--"] } else { &[] };
        let child = started(circuitlab(launch.iter().copied().chain(args)));
        wait_for_steps(&out);
        send(&child, signal);
        let said = stopped(child);
        let step = step(&said);
        assert!((1..1500).contains(&step), "{said}");
        let checkpoint = out.join(format!("checkpoints/step-{step:08}"));
        assert!(checkpoint.join("config.yaml").is_file() && checkpoint.join("train/state.json").is_file());
        assert!(!out.join("final").exists() && fs::read_to_string(out.join("log.txt")).expect("a log").contains("as asked"));

        // As a shell takes what was said.
        let again = said.trim_end().split_once("; to go on: ").expect("a command").1;
        assert!(again.contains(if launched { "launch --ranks 1 -- train --resume" } else { "circuitlab train --resume" }), "{again}");
        let output = bare(Path::new("/bin/sh"), ["-c", again]).output().expect("a shell");
        assert!(output.status.success(), "{again}\n{}", stderr(&output));
        assert!(result(&out) == result(&whole), "{again}");
    }
    let figures = json(&["train", "--resume", "--cache", arg(&cache), "--out", arg(&whole)]);
    assert!(figures.get("stopped_at").is_none() && figures["steps"] == 1500, "{figures}");
}

/// Signals come before the first step, within steps and checkpoints, and at the end.
#[test]
fn a_run_that_is_stopped_at_any_moment_ends_with_the_same_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let more = ["--set", "schedule.steps=40", "--set", "checkpoint.every_steps=1"];
    let (whole, out) = (folder.path().join("whole"), folder.path().join("stopped"));
    let began = Instant::now();
    succeed(&train_args(&cache, &whole, &more));
    let longest = began.elapsed();

    let (mut stops, mut finished) = (0, 0);
    for round in 0_u32..12 {
        let begun = out.join("config.toml").is_file();
        let args =
            if begun { vec!["train", "--resume", "--cache", arg(&cache), "--out", arg(&out)] } else { train_args(&cache, &out, &more) };
        let mut child = started(circuitlab(args));
        sleep(longest.mul_f64(f64::from(round * 7 % 12) / 12.0));
        send(&child, Signal::TERM);
        let status = child.wait().expect("ends");
        // Before it listens to signals one ends it, as it ends any program.
        assert!(status.success() || status.signal() == Some(15), "{status}");
        stops += u32::from(status.success());
        let checkpoints = fs::read_dir(out.join("checkpoints")).into_iter().flatten().map(|entry| entry.expect("an entry").path());
        assert!(!status.success() || out.join("final").exists() || checkpoints.count() > 0);
        if out.join("final").exists() {
            assert!(result(&out) == result(&whole));
            fs::remove_dir_all(&out).expect("removes");
            finished += 1;
        }
    }
    assert!(stops > 0, "{stops} stops, {finished} runs finished");
    if out.exists() {
        succeed(&["train", "--resume", "--cache", arg(&cache), "--out", arg(&out)]);
        assert!(result(&out) == result(&whole));
    }
}

/// Two ranks of a run.
fn launched(args: &[&str]) -> Command {
    circuitlab(["launch", "--ranks", "2", "--"].iter().chain(args))
}

/// The processes that one started, in order.
#[cfg(target_os = "linux")]
fn children(of: &Child) -> Vec<Pid> {
    let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", of.id())).expect("a process");
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn ranks_stop_after_the_same_step_although_one_alone_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let whole = folder.path().join("whole");
    for (strategy, told) in [("ddp", 1), ("feature-sharded", 0)] {
        let more = ["--strategy", strategy, "--set", "schedule.steps=300"];
        assert!(stopped(started(launched(&train_args(&cache, &whole, &more)))).contains("trained 300 steps"));
        let out = folder.path().join("stopped");
        let child = started(launched(&train_args(&cache, &out, &more)));
        wait_for_steps(&out);
        kill_process(children(&child)[told], Signal::USR1).expect("is there");
        let said = stopped(child);
        assert!((1..300).contains(&step(&said)), "{said}");
        assert!(said.contains("launch --ranks 2 -- train --resume"), "{said}");
        stopped(started(launched(&["train", "--resume", "--cache", arg(&cache), "--out", arg(&out)])));
        assert!(result(&out) == result(&whole), "{strategy}");
        for run in [&out, &whole] {
            fs::remove_dir_all(run).expect("removes");
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let out = folder.path().join("run");
    // It waits for another rank, which does not come.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let mut command = circuitlab(train_args(&cache, &out, &["--strategy", "ddp"]));
    command.env("RANK", "0").env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    let mut child = started(command);
    let mut from = BufReader::new(child.stderr.take().expect("piped"));
    while !child_listens(child.id()) {
        sleep(Duration::from_millis(20));
    }
    send(&child, Signal::TERM);
    let mut said = String::new();
    from.read_line(&mut said).expect("reads");
    assert!(said.contains("SIGTERM: the run stops after its next step") && said.contains("a second signal ends it"), "{said}");
    assert!(child.try_wait().expect("a child").is_none());
    send(&child, Signal::USR1);
    assert_eq!(child.wait().expect("ends").signal(), Some(10), "{said}");
    assert!(!out.exists());
    assert_eq!(from.read_to_string(&mut said).expect("reads"), 0, "{said}");
}

/// Whether a process catches SIGTERM.
#[cfg(target_os = "linux")]
fn child_listens(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("signals that are caught");
    u64::from_str_radix(caught.trim(), 16).expect("a number") & (1 << 14) != 0
}
