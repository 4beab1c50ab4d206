//! Ranks that leave, hang, or do something else.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use circuitlab_c10d::{Environment, Limits, ProcessGroup, Reduction, World};
use tch::{Device, Kind, Tensor};

use crate::ranks::{LIMIT, is_rank, outputs, said, started};

/// The limit of operations here.
const SHORT: Duration = Duration::from_secs(4);

/// What a rank prints when it is ready to be harmed.
const READY: &str = "ready";

/// Where all answer an operation may take longer than any test.
const PATIENT: Limits = Limits { silent: SHORT, longest: LIMIT };

fn world(limits: Limits) -> (World, ProcessGroup) {
    let world = World::join(&Environment::read().expect("variables"), LIMIT).expect("all come");
    let all: Vec<usize> = (0..world.axis().size).collect();
    let group = world.group("all", &all, limits).expect("all come");
    group.barrier().expect("all answer");
    (world, group)
}

/// Adds up until it fails; says what failed and how long that took, and ends without waiting for anybody.
fn add_until_it_fails(group: &ProcessGroup) {
    eprintln!("{READY}");
    loop {
        let begun = Instant::now();
        let mut tensor = Tensor::ones([4096], (Kind::Float, Device::Cpu));
        if let Err(error) = group.all_reduce(&mut tensor, Reduction::Sum) {
            eprintln!("failed after {} ms: {error}", begun.elapsed().as_millis());
            let again = group.barrier().expect_err("of no use").to_string();
            assert!(again.contains("the group is of no use since an operation failed: rank "), "{again}");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a rank says that it is ready.
fn ready(child: &mut Child) {
    let lines = BufReader::new(child.stderr.as_mut().expect("piped")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains(READY)), "it ended before it was ready");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill runs").success());
}

/// Harms rank 2 of 4, and gives what the others say of it.
fn after(test: &str, harm: &str) -> Vec<String> {
    let mut children = started(test, 4);
    children.iter_mut().for_each(ready);
    let mut harmed = children.remove(2);
    signal(&harmed, harm);
    let begun = Instant::now();
    let errors = outputs(children).iter().map(said).collect();
    // The limit, the questions, and leave for a busy machine; less than what an operation may take.
    assert!(begun.elapsed() < 2 * SHORT + LIMIT / 2, "{:?}", begun.elapsed());
    let _ = harmed.kill();
    let _ = harmed.wait();
    errors
}

#[test]
fn a_rank_that_is_killed_is_named() {
    if is_rank() {
        return add_until_it_fails(&world(PATIENT).1);
    }
    for said in after("faults::a_rank_that_is_killed_is_named", "-KILL") {
        assert!(said.contains("failed after ") && said.contains("all_reduce of 4096 Float: rank 2 (127.0.0.1) is gone"), "{said}");
    }
}

#[test]
fn a_rank_that_is_stopped_is_named_within_the_limit() {
    if is_rank() {
        return add_until_it_fails(&world(PATIENT).1);
    }
    for said in after("faults::a_rank_that_is_stopped_is_named_within_the_limit", "-STOP") {
        let named = "rank 2 (127.0.0.1) does not answer: it hangs, or is cut off";
        assert!(said.contains("failed after ") && said.contains(named), "{said}");
    }
}

#[test]
fn a_rank_that_leaves_by_itself_is_named() {
    if is_rank() {
        let (world, group) = world(PATIENT);
        if world.axis().rank != 1 {
            add_until_it_fails(&group);
        }
        return;
    }
    let children = started("faults::a_rank_that_leaves_by_itself_is_named", 3);
    for (rank, output) in outputs(children).iter().enumerate() {
        let said = said(output);
        assert!(output.status.success(), "{said}");
        assert!(rank == 1 || said.contains("rank 1 (127.0.0.1) is gone") || said.contains("or has left it"), "rank {rank}: {said}");
    }
}

#[test]
fn a_rank_that_does_something_else_is_named() {
    if is_rank() {
        let (world, group) = world(PATIENT);
        let rank = world.axis().rank;
        let mut tensor = Tensor::ones([if rank == 0 { 7 } else { 5 }], (Kind::Float, Device::Cpu));
        let error = group.all_reduce(&mut tensor, Reduction::Sum).expect_err("shapes differ").to_string();
        eprintln!("{error}");
        std::thread::sleep(SHORT);
        return;
    }
    let outputs = outputs(started("faults::a_rank_that_does_something_else_is_named", 2));
    let said: Vec<String> = outputs.iter().map(said).collect();
    // Gloo's threads may find it first, and end the process.
    let named =
        |said: &String| said.contains("expected all ranks to do the same") || said.contains("Error: two ranks are in different operations");
    assert!(said.iter().any(named), "{said:?}");
    assert!(outputs.iter().all(|output| output.status.code().is_some()), "no process is ended by a signal: {said:?}");
}

#[test]
fn a_rank_that_is_late_and_answers_is_waited_for() {
    let limits = Limits { silent: SHORT / 4, longest: LIMIT };
    if is_rank() {
        let (world, group) = world(limits);
        if world.axis().rank == 1 {
            std::thread::sleep(SHORT);
        }
        return group.barrier().expect("it comes");
    }
    for output in outputs(started("faults::a_rank_that_is_late_and_answers_is_waited_for", 3)) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

/// Handles, groups and worlds are dropped while others hang; the process must end, and well.
#[test]
fn ending_waits_for_nobody() {
    if is_rank() {
        let (world, group) = world(Limits { silent: SHORT, longest: SHORT });
        if world.axis().rank == 1 {
            eprintln!("{READY}");
            std::thread::sleep(20 * SHORT);
            return;
        }
        let large = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
        let works: Vec<_> = (0..3).map(|_| group.start_all_reduce(large.copy(), Reduction::Sum).expect("begins")).collect();
        drop(works);
        assert!(group.barrier().is_err());
        return;
    }
    let mut children = started("faults::ending_waits_for_nobody", 3);
    ready(&mut children[1]);
    let mut hangs = children.remove(1);
    let begun = Instant::now();
    for output in outputs(children) {
        assert!(output.status.success(), "{}", said(&output));
    }
    assert!(begun.elapsed() < 15 * SHORT, "{:?}", begun.elapsed());
    hangs.kill().expect("kills");
    hangs.wait().expect("ends");
}
