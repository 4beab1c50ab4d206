//! A test that is several processes.

use std::env;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use circuitlab_c10d::{Environment, Limits, ProcessGroup, World};

/// Longer than any test here takes on a busy machine; those that measure a limit set one of their own.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

pub(crate) const LIMITS: Limits = Limits { silent: LIMIT, longest: LIMIT };

const MARK: &str = "CIRCUITLAB_C10D_TEST_RANK";

/// Runs `body` in so many processes, as the ranks of a run. `test` is the calling test's own name, with its modules.
pub(crate) fn together(test: &str, ranks: usize, body: impl FnOnce(&World)) {
    if is_rank() {
        return body(&World::join(&Environment::read().expect("a launcher's variables"), LIMIT).expect("all ranks come"));
    }
    for (rank, output) in outputs(started(test, ranks)).iter().enumerate() {
        assert!(output.status.success(), "rank {rank} of {ranks}: {}", said(output));
    }
}

/// Whether this process is one of those that the test started.
pub(crate) fn is_rank() -> bool {
    env::var_os(MARK).is_some()
}

/// Starts this test once for each rank.
pub(crate) fn started(test: &str, ranks: usize) -> Vec<Child> {
    let port = free_port().to_string();
    (0..ranks).map(|rank| command(test, rank, ranks, &port).spawn().expect("this test starts")).collect()
}

pub(crate) fn command(test: &str, rank: usize, ranks: usize, port: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this test"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string()).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
    command
}

pub(crate) fn outputs(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().expect("ends")).collect()
}

/// What a rank printed.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// The group of all.
pub(crate) fn everyone(world: &World) -> ProcessGroup {
    let all: Vec<usize> = (0..world.axis().size).collect();
    world.group("all", &all, LIMITS).expect("all come")
}
