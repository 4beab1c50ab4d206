//! How ranks meet, and what keeps them from it.

use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use circuitlab_c10d::{Environment, Store, World};

use crate::ranks::{LIMIT, LIMITS, command, everyone, free_port, is_rank, outputs, said, together};

fn place(rank: usize, ranks: usize, port: u16) -> Environment {
    Environment { rank, ranks, host: "127.0.0.1".to_owned(), port, ..Environment::alone() }
}

fn refused(environment: &Environment, limit: Duration) -> String {
    let begun = Instant::now();
    let error = World::join(environment, limit).expect_err("refused").to_string();
    assert!(begun.elapsed() < limit + LIMIT, "{:?}: {error}", begun.elapsed());
    error
}

#[test]
fn one_rank_needs_no_network() {
    let world = World::join(&Environment::alone(), LIMIT).expect("nobody to meet");
    everyone(&world).barrier().expect("nobody to wait for");
    assert!(world.store().is_none());
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let error = refused(&place(0, 2, port), Duration::from_secs(5));
    assert!(
        error.starts_with(&format!("rank 0: cannot host the store at 127.0.0.1:{port}: the port is in use; choose another")),
        "{error}"
    );
}

#[test]
fn an_unreachable_master_is_named() {
    let port = free_port();
    let error = refused(&place(1, 2, port), Duration::from_secs(2));
    let want = format!("rank 1: cannot reach the store at 127.0.0.1:{port}: nobody answers there within 2 s; expected rank 0");
    assert!(error.starts_with(&want), "{error}");
    let nowhere = Environment { host: "no-such-host.invalid".to_owned(), ..place(1, 2, port) };
    let error = refused(&nowhere, Duration::from_secs(2));
    assert!(error.contains(&format!("at no-such-host.invalid:{port}: ")), "{error}");
}

/// The system takes connections for whoever listens, though it be a program of another kind, or hang.
#[test]
fn a_master_that_says_nothing_is_named() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let error = refused(&place(1, 2, port), Duration::from_secs(1));
    let want = format!("rank 1: cannot reach the store at 127.0.0.1:{port}: nobody answers there within 1 s; expected rank 0");
    assert!(error.starts_with(&want), "{error}");
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let error = refused(&place(0, 4, free_port()), Duration::from_secs(1));
    assert!(error.ends_with(": ranks 1, 2, 3 did not come within 1 s"), "{error}");
}

/// What a rank of the next tests prints.
const SAYS: &str = "the error is: ";

fn join_and_say() {
    match World::join(&Environment::read().expect("variables"), Duration::from_secs(5)) {
        Ok(world) => everyone_leaves(&world),
        Err(error) => eprintln!("{SAYS}{error}"),
    }
}

fn error_of(output: &Output) -> String {
    let all = said(output);
    all.split_once(SAYS).and_then(|(_, rest)| rest.lines().next()).unwrap_or_default().to_owned()
}

/// Starts this test as ranks of these numbers and worlds; gives what they say.
fn errors(test: &str, ranks: &[(usize, usize)], change: impl Fn(&mut std::process::Command)) -> Vec<String> {
    let port = free_port().to_string();
    let start = |(rank, ranks): &(usize, usize)| {
        let mut command = command(test, *rank, *ranks, &port);
        change(&mut command);
        command.spawn().expect("this test starts")
    };
    outputs(ranks.iter().map(start).collect()).iter().map(error_of).collect()
}

#[test]
fn two_processes_of_one_rank_are_refused() {
    if is_rank() {
        return join_and_say();
    }
    let errors = errors("meeting::two_processes_of_one_rank_are_refused", &[(0, 3), (1, 3), (1, 3)], |_| ());
    assert!(errors.iter().any(|error| error.contains("another process has this rank already")), "{errors:?}");
}

#[test]
fn another_number_of_ranks_is_refused() {
    if is_rank() {
        return join_and_say();
    }
    let errors = errors("meeting::another_number_of_ranks_is_refused", &[(0, 2), (1, 3)], |_| ());
    assert!(errors[0].ends_with("rank 1 says that there are 3 ranks; expected the same number everywhere"), "{errors:?}");
}

#[test]
fn an_interface_is_honoured_and_a_wrong_one_named() {
    if is_rank() {
        return join_and_say();
    }
    let test = "meeting::an_interface_is_honoured_and_a_wrong_one_named";
    let good = errors(test, &[(0, 2), (1, 2)], |command| {
        command.env("GLOO_SOCKET_IFNAME", "lo");
    });
    assert_eq!(good, ["", ""]);
    let wrong = errors(test, &[(0, 2), (1, 2)], |command| {
        command.env("GLOO_SOCKET_IFNAME", "lan7");
    });
    for error in wrong {
        assert!(error.starts_with("the environment's GLOO_SOCKET_IFNAME is `lan7`: there is no such network interface"), "{error}");
        assert!(error.contains("lo (127.0.0.1)"), "{error}");
    }
}

#[test]
fn the_launchers_store_is_used() {
    let test = "meeting::the_launchers_store_is_used";
    if is_rank() {
        let world = World::join(&Environment::read().expect("variables"), LIMIT).expect("all come");
        return everyone(&world).barrier().expect("all answer");
    }
    let port = free_port();
    let _hosted = Store::open(&place(0, 2, port), LIMIT).expect("hosts");
    let start = |rank| {
        let mut command = command(test, rank, 2, &port.to_string());
        command.env("TORCHELASTIC_USE_AGENT_STORE", "True").env("TORCHELASTIC_RESTART_COUNT", "1").spawn().expect("starts")
    };
    for output in outputs([0, 1].map(start).into()) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn a_store_keeps_what_it_is_given() {
    together("meeting::a_store_keeps_what_it_is_given", 2, |world| {
        let store = world.store().expect("two ranks");
        let rank = world.axis().rank;
        store.set(&format!("mine/{rank}"), &[0, rank as u8, 255]).expect("sets");
        assert_eq!(store.get(&format!("mine/{}", 1 - rank), LIMIT).expect("comes"), [0, 1 - rank as u8, 255]);
        store.add("sum", 2 + rank as i64).expect("adds");
        everyone(world).barrier().expect("all answer");
        assert_eq!(store.add("sum", 0).expect("adds"), 5);
        assert!(store.has("sum").expect("answers") && !store.has("none").expect("answers"));
        let error = store.get("none", Duration::from_millis(50)).expect_err("nobody sets it").to_string();
        assert!(error.starts_with(&format!("rank {rank}: cannot get `none` in the store at 127.0.0.1:")), "{error}");
        everyone_leaves(world);
    });
}

/// The store goes with rank 0: it must not while others ask.
fn everyone_leaves(world: &World) {
    let all: Vec<usize> = (0..world.axis().size).collect();
    world.group("leaving", &all, LIMITS).and_then(|group| group.barrier()).expect("all answer");
}
