//! Processes that are killed at random moments and resumed end with what an uninterrupted one ends with.

#![allow(clippy::print_stdout, reason = "a failure is looked into by its seed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use circuitlab_tests::moments::Moments;
use circuitlab_tests::{arg, circuitlab, model, text};

use crate::pipeline::{self, SMALL};

const KILLS: usize = 20;

/// Kills that may not come within this time are not waited for; the machine is then too slow to say anything.
const PATIENCE: Duration = Duration::from_mins(10);

fn quiet(args: &[&str]) -> Command {
    let mut command = circuitlab(args);
    // The program starts itself again without this; a kill in between would hit a process that does nothing yet.
    command.env("OMP_WAIT_POLICY", "PASSIVE").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits for a while, then kills. Gives whether it was still running.
fn kill_after(mut child: Child, moment: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < moment {
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "it ended by itself, with an error");
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("SIGKILL");
    let status = child.wait().expect("a child");
    !status.success()
}

/// Runs `first` and then `again` until enough of them were killed, in one place after the other; `check` is shown each place that
/// was finished.
fn kill_and_resume(longest: Duration, place: impl Fn(usize) -> PathBuf, run: impl Fn(&Path, bool) -> Command, check: impl Fn(&Path)) {
    let (mut moments, started) = (Moments::new(), Instant::now());
    let (mut kills, mut places, mut killed_here) = (0, 0, 0);
    let mut current = place(places);
    while kills < KILLS {
        assert!(started.elapsed() < PATIENCE, "{kills} kills in {PATIENCE:?}");
        let child = run(&current, current.exists()).spawn().expect("the program starts");
        if kill_after(child, moments.between(longest / 50, longest)) {
            kills += 1;
            killed_here += 1;
        } else {
            check(&current);
            println!("{} was killed {killed_here} times", current.display());
            places += 1;
            killed_here = 0;
            current = place(places);
        }
    }
    if current.exists() || killed_here > 0 {
        let output = run(&current, current.exists()).output().expect("the program starts");
        assert!(output.status.success(), "{}", circuitlab_tests::stderr(&output));
        check(&current);
    }
}

fn timed(command: &mut Command) -> Duration {
    let started = Instant::now();
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{}", circuitlab_tests::stderr(&output));
    started.elapsed()
}

/// Names and bytes of the chunks of a cache.
fn chunks(cache: &Path) -> Vec<(String, Vec<u8>)> {
    let part = cache.join("part-001-of-001");
    let mut all: Vec<_> = fs::read_dir(&part)
        .expect("a part")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file")))
        .collect();
    all.sort();
    all
}

#[test]
fn a_killed_cache_goes_on_byte_for_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (model(), text());
    let run = |out: &Path, resume: bool| {
        let mut args =
            vec!["cache", "--model", arg(&model), "--text", arg(&text), "--range", "0..0.1", "--out", arg(out), "--set", "chunk_rows=1500"];
        if resume {
            args.push("--resume");
        }
        quiet(&args)
    };
    let whole = folder.path().join("whole");
    let longest = timed(&mut run(&whole, false));
    let want = chunks(&whole);
    assert!(want.len() > 20, "{} files", want.len());
    let check = |out: &Path| {
        let got = chunks(out);
        assert_eq!(got.iter().map(|(name, _)| name).collect::<Vec<_>>(), want.iter().map(|(name, _)| name).collect::<Vec<_>>());
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            assert!(got == want, "{} differs in {}", name, out.display());
        }
    };
    kill_and_resume(longest, |index| folder.path().join(format!("cache-{index}")), run, check);
}

/// `metrics.csv`, but for the columns that depend on the clock.
fn table(run: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(run.join("metrics.csv")).expect("metrics");
    let mut rows: Vec<Vec<String>> = text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect();
    let kept: Vec<bool> = rows[0].iter().map(|name| !name.starts_with("throughput/")).collect();
    for row in &mut rows {
        let mut column = kept.iter();
        row.retain(|_| column.next().is_some_and(|kept| *kept));
    }
    rows
}

/// Every figure of a run but those that depend on the clock.
fn trajectory(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let record = |line: &str| {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("a record");
        record.as_object_mut().expect("a table").retain(|name, _| !name.starts_with("throughput/"));
        record
    };
    text.lines().map(record).collect()
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.05", &[]);
    let run = |out: &Path, resume: bool| {
        let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(out)];
        if resume {
            args.push("--resume");
        } else {
            args.extend(SMALL);
            args.extend(["--set", "schedule.steps=120", "--set", "metrics.every_steps=3"]);
            args.extend(["--sink", "jsonl", "--sink", "csv", "--sink", "tensorboard"]);
        }
        quiet(&args)
    };
    let whole = folder.path().join("whole");
    let longest = timed(&mut run(&whole, false));
    let want = trajectory(&whole);
    assert!(want.len() >= 40, "{} records", want.len());
    let check = |out: &Path| {
        assert_eq!(trajectory(out), want, "{}", out.display());
        assert_eq!(table(out), table(&whole), "{}", out.display());
        for file in fs::read_dir(whole.join("final")).expect("the result").map(|entry| entry.expect("an entry").file_name()) {
            let read = |run: &Path| fs::read(run.join("final").join(&file)).expect("a file");
            assert!(read(out) == read(&whole), "{} differs in {}", file.display(), out.display());
        }
    };
    kill_and_resume(longest, |index| folder.path().join(format!("run-{index}")), run, check);
}
