//! Training over two hosts: network namespaces of this machine, with a cable between them.

#![allow(clippy::print_stdout, reason = "a test that cannot run says why")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use circuitlab_tests::{arg, bare, binary, stderr};

use crate::pipeline::{self, SMALL};
use crate::ranks::{apart, weights};

const PATIENCE: Duration = Duration::from_mins(2);

const PATH: &str = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is made of new namespaces, in which the shell is: two hosts with a cable, as long as the shell lives.
const SETUP: &str = "set -e
mount -t tmpfs none /run
for host in one two; do ip netns add $host; done
ip link add cable netns one type veth peer name cable netns two
ip -n one addr add 10.9.0.1/24 dev cable
ip -n two addr add 10.9.0.2/24 dev cable
for host in one two; do ip -n $host link set lo up; ip -n $host link set cable up; done
echo there
read end";

const HOSTS: [(&str, &str); 2] = [("one", "10.9.0.1"), ("two", "10.9.0.2")];

/// Two hosts. They go with the process that holds them, which ends when it is dropped, or this test is.
struct Hosts(Child);

impl Hosts {
    /// Nothing where the machine does not allow it; then it is printed why.
    fn new() -> Option<Self> {
        let mut command = bare(Path::new("unshare"), ["-rnm", "--kill-child", "--fork", "sh", "-c", SETUP]);
        command.env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = match command.spawn() {
            Ok(holder) => holder,
            Err(error) => {
                println!("not tried: there is no `unshare`: {error}");
                return None;
            }
        };
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut line).expect("text");
        if line == "there\n" {
            return Some(Self(holder));
        }
        println!("not tried, since network namespaces cannot be made: {}", stderr(&holder.wait_with_output().expect("ends")));
        None
    }

    /// A program on one of them.
    fn on(&self, host: &str, program: &str, args: &[&str]) -> Command {
        let holder = self.inner().to_string();
        let enter = ["--preserve-credentials", "-U", "-n", "-m", "-t", &holder, "ip", "netns", "exec", host, program];
        let mut command = bare(Path::new("nsenter"), enter.iter().chain(args));
        command.env("PATH", PATH);
        command
    }

    /// The shell, a child of what made the namespaces.
    fn inner(&self) -> u32 {
        let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0.id())).expect("a process");
        list.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a shell")
    }

    /// Pulls the cable out, or puts it in.
    fn cable(&self, state: &str) {
        let output = self.on("one", "ip", &["link", "set", "cable", state]).output().expect("starts");
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// A rank on each host.
    fn start(&self, args: &[&str]) -> Vec<Child> {
        let program = binary();
        let start = |(rank, (host, _)): (usize, &(&str, &str))| {
            let mut command = self.on(host, arg(&program), args);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("MASTER_ADDR", HOSTS[0].1).env("MASTER_PORT", "29500");
            // The program starts itself again without this.
            command.env("OMP_WAIT_POLICY", "PASSIVE").stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().expect("starts")
        };
        HOSTS.iter().enumerate().map(start).collect()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // The shell reads to the end, and takes the namespaces along.
        drop(self.0.stdin.take().map(|mut input| input.write_all(b"\n")));
        let _ = self.0.wait();
    }
}

/// Exit codes of the ranks and what they said.
fn ends(children: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let began = Instant::now();
    let mut children = children;
    let mut late = false;
    while !late && children.iter_mut().any(|child| child.try_wait().expect("a child").is_none()) {
        late = began.elapsed() > PATIENCE;
        sleep(Duration::from_millis(5));
    }
    let end = |mut child: Child| {
        if late {
            child.kill().expect("SIGKILL");
        }
        let output = child.wait_with_output().expect("ends");
        (output.status.code(), stderr(&output))
    };
    let ends: Vec<_> = children.into_iter().map(end).collect();
    assert!(!late, "a rank has not ended: {ends:?}");
    ends
}

fn succeed(children: Vec<Child>) {
    for (code, said) in ends(children) {
        assert_eq!(code, Some(0), "{said}");
    }
}

fn args<'a>(cache: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let settings = ["--set", "compute.dtype=f64", "--set", "compute.threads=1"];
    ["train", "--cache", arg(cache), "--out", arg(out)].into_iter().chain(SMALL).chain(settings).chain(more.iter().copied()).collect()
}

#[test]
fn two_hosts_train_what_one_does() {
    let Some(hosts) = Hosts::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let alone = folder.path().join("alone");
    let output = bare(&binary(), args(&cache, &alone, &[])).output().expect("starts");
    assert!(output.status.success(), "{}", stderr(&output));
    for strategy in ["ddp", "feature-sharded"] {
        let both = folder.path().join(strategy);
        succeed(hosts.start(&args(&cache, &both, &["--strategy", strategy])));
        for ((file, one), (_, other)) in weights(&alone).iter().zip(&weights(&both)) {
            let apart = apart(one, other);
            assert!(apart < 1e-8, "{strategy}, {file}: {apart:e} apart from one process");
        }
    }
}

#[test]
fn hosts_that_are_cut_off_end_and_go_on() {
    let Some(hosts) = Hosts::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let more = ["--strategy", "feature-sharded", "--set", "strategy.timeout_seconds=5", "--set", "schedule.steps=200"];
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    succeed(hosts.start(&args(&cache, &whole, &more)));

    let ranks = hosts.start(&args(&cache, &cut, &more));
    let began = Instant::now();
    while fs::read_dir(cut.join("checkpoints")).map_or(0, Iterator::count) < 2 && began.elapsed() < PATIENCE {
        sleep(Duration::from_millis(2));
    }
    hosts.cable("down");
    let ends = ends(ranks);
    for ((code, said), (_, other)) in ends.iter().zip(HOSTS.iter().rev()) {
        assert_eq!(*code, Some(1), "{ends:?}");
        assert!(said.contains(other) && said.contains("does not answer: it hangs, or is cut off"), "{ends:?}");
    }
    assert!(!cut.join("final").exists(), "it was cut in the middle: {ends:?}");

    hosts.cable("up");
    succeed(hosts.start(&["train", "--cache", arg(&cache), "--out", arg(&cut), "--resume"]));
    assert!(weights(&cut) == weights(&whole), "what was cut and went on ends as what was not");
}
