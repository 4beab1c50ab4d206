//! `circuitlab launch`: several processes of one run, started, watched and ended by one.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use circuitlab_tests::plugins::{fixture, library};
use circuitlab_tests::{arg, circuitlab, stderr};
use rustix::process::{Pid, Signal, kill_process};

use crate::pipeline::{self, SMALL};

/// A plan of a run whose ranks do one of these each.
fn launch(plugin: &Path, deeds: &[&str]) -> Command {
    let (ranks, deeds) = (deeds.len().to_string(), format!("strategy.deeds={deeds:?}"));
    let mut args = vec!["launch", "--ranks", &ranks, "--", "--plugin", arg(plugin)];
    args.extend(["train", "--dry-run", "--shape", "2x64", "--out", "/nowhere/run", "--strategy", "unruly", "--set", &deeds]);
    circuitlab(args)
}

fn unruly(folder: &Path) -> PathBuf {
    library(&fixture("unruly"), "", folder)
}

fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().expect("starts");
    let said = stderr(&output);
    (output, said)
}

#[test]
fn mistakes_are_told_in_one_line() {
    for (args, code, words) in [
        (&["--ranks", "0", "--", "train"][..], 2, "0 is not in 1..=1024"),
        (&["--ranks", "2"], 2, "required arguments were not provided"),
        (&["--ranks", "2", "--"], 2, "required arguments were not provided"),
        (&["--ranks", "2", "--", "trian"], 2, "unrecognized subcommand 'trian'"),
        (&["--ranks", "2", "--", "train", "--cache", "x"], 2, "--out <RUN>"),
        (&["--ranks", "2", "--", "launch", "--ranks", "2", "--", "train", "--out", "x"], 1, "not of `launch`"),
        (&["--master-port", "65536", "--ranks", "2", "--", "train"], 2, "65536 is not in 1..=65535"),
    ] {
        let (output, said) = run(circuitlab(["launch"]).args(args));
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{said}");
        assert!(said.contains(words) && said.matches("error: ").count() == 1 && !said.contains("[rank"), "{args:?}\n{said}");
    }
}

#[test]
fn ranks_train_together_and_the_first_one_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cache, out) = (pipeline::cache(folder.path(), "0..0.02", &[]), folder.path().join("run"));
    let mut args = vec!["--json", "launch", "--ranks", "2", "--", "train", "--cache", arg(&cache), "--out", arg(&out)];
    args.extend(SMALL.into_iter().chain(["--strategy", "ddp"]));
    let (output, said) = run(&mut circuitlab(args));
    assert!(output.status.success(), "{said}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).expect("what one rank says");
    assert_eq!(figures["steps"], 30, "{figures}");
    // Progress is shown once, as that of one process, and where it was slow enough to be worth a line.
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.iter().all(|line| line.starts_with("train: ")), "{said}");
    assert!(lines.iter().filter(|line| line.contains(" tokens in ")).count() <= 1, "{said}");
    assert!(out.join("final/config.yaml").is_file());
}

#[test]
fn ranks_see_their_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = unruly(folder.path());
    let (output, said) = run(launch(&plugin, &["tell", "tell"]).env("OMP_NUM_THREADS", "3").env("RANK", "9"));
    assert!(output.status.success(), "{said}");
    for rank in 0..2 {
        let line = format!(
            "[rank {rank}] RANK={rank} LOCAL_RANK={rank} WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=3\n"
        );
        assert!(said.contains(&line), "{line}{said}");
    }
    let ports: Vec<&str> = said.lines().filter_map(|line| line.split_once("MASTER_PORT=").map(|(_, port)| port)).collect();
    assert!(ports.len() >= 2 && ports.iter().all(|port| *port == ports[0] && port.parse::<u16>().is_ok()), "{ports:?}");
    let many: Vec<&str> = std::iter::repeat_n("tell", 9).collect();
    let (_, said) = run(&mut launch(&plugin, &many));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = format!(
        "[rank 8] RANK=8 LOCAL_RANK=8 WORLD_SIZE=9 LOCAL_WORLD_SIZE=9 MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS={}\n",
        (cores / 9).max(1)
    );
    assert!(said.contains(&threads), "{said}");
}

#[test]
fn the_first_failure_is_told_and_the_others_may_say_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = unruly(folder.path());
    let last = |said: &str| said.lines().last().unwrap_or_default().to_owned();

    let (output, said) = run(&mut launch(&plugin, &["fail-later", "exit", "nothing"]));
    assert_eq!((output.status.code(), last(&said).as_str()), (Some(7), "error: rank 1 of 3 ended with exit code 7"), "{said}");
    assert!(said.contains("[rank 0] error: ") && said.contains("rank 0 lost another"), "{said}");

    // Whoever hangs is given its time, and killed.
    let (output, said) = run(&mut launch(&plugin, &["hang", "fail"]));
    let words = "error: rank 1 of 2 ended with exit code 1; rank 0 went on, and was killed";
    assert_eq!((output.status.code(), last(&said).as_str()), (Some(1), words), "{said}");
    assert!(said.contains("rank 1 was told to") && ended(pids(&said)[0]), "{said}");
}

#[test]
fn whatever_ranks_write_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = launch(&unruly(folder.path()), &["chat", "chat", "chat"]).output().expect("starts");
    assert!(output.status.success());
    let lines: Vec<&[u8]> = output.stderr.split(|byte| *byte == b'\n').collect();
    let (none, lines) = lines.split_last().expect("lines");
    assert!(none.is_empty() && lines.iter().all(|line| line.starts_with(b"[rank ")), "every line has its rank");
    // It is made once, tried once and planned with.
    let times = |rank: u8| {
        let of_rank = lines.iter().filter(|line| line[6] == b'0' + rank);
        let (mut letters, mut halves) = (0, 0);
        for line in of_rank {
            letters += letters_in(line);
            halves += usize::from(line.windows(4).any(|window| window == b"half"));
        }
        (letters / (200 * 10_007), letters % (200 * 10_007), halves / 5000, halves % 5000)
    };
    let (written, rest, halves, rest_of_halves) = times(0);
    assert!(written >= 1 && (rest, halves, rest_of_halves) == (0, written, 0), "{written} {rest} {halves} {rest_of_halves}");
    assert_eq!((times(1), times(2)), (times(0), times(0)));
    let own = letters_in(&output.stdout);
    assert!((written * 200 * 10_007..written * 200 * 10_007 + 1000).contains(&own), "the output of one rank: {own}");
}

fn letters_in(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'x').count() - 1
}

/// The processes that told their numbers.
fn pids(said: &str) -> Vec<u32> {
    said.lines().filter_map(|line| line.split_once("pid ")?.1.parse().ok()).collect()
}

/// Whether a process has ended, be it that nobody waited for it yet.
fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Two ranks that hang, and their numbers; what else they say can be read on.
fn hanging(plugin: &Path) -> (Child, BufReader<impl Read>, Vec<u32>) {
    let mut child = launch(plugin, &["hang", "hang"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut from = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    while pids(&said).len() < 2 {
        assert!(from.read_line(&mut said).expect("reads") > 0, "{said}");
    }
    (child, from, pids(&said))
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).expect("a process"), signal).expect("is there");
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_left_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = unruly(folder.path());

    // A rank is killed; the other is given its time.
    let (mut child, mut from, ranks) = hanging(&plugin);
    send(ranks[1], Signal::KILL);
    let mut said = String::new();
    from.read_to_string(&mut said).expect("reads");
    assert_eq!(child.wait().expect("ends").code(), Some(137));
    assert!(said.contains("was ended by signal 9 (SIGKILL); rank") && said.contains("went on, and was killed"), "{said}");
    assert!(ranks.iter().all(|rank| ended(*rank)));

    // A signal goes on to all ranks.
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15)] {
        let (mut child, mut from, ranks) = hanging(&plugin);
        send(child.id(), signal);
        let mut said = String::new();
        from.read_to_string(&mut said).expect("reads");
        assert_eq!(child.wait().expect("ends").code(), Some(128 + number), "{said}");
        assert!(said.contains(&format!("was ended by signal {number} (")) && ranks.iter().all(|rank| ended(*rank)), "{said}");
    }

    // The launching process is killed.
    let (mut child, _from, ranks) = hanging(&plugin);
    child.kill().expect("SIGKILL");
    assert_eq!(child.wait().expect("ends").signal(), Some(9));
    for _ in 0..1000 {
        if ranks.iter().all(|rank| ended(*rank)) {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("ranks {ranks:?} are left");
}
