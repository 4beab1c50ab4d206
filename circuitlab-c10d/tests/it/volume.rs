//! What is counted as sent is what the system saw being written.

use circuitlab_c10d::{Operation, ProcessGroup, Reduction};
use circuitlab_core::Axis;
use tch::{Device, Kind, Tensor};

use crate::ranks::{everyone, together};

const ENTRIES: usize = 3 << 18;

/// Bytes that this process has written, to sockets as well.
fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").expect("Linux");
    text.lines().find_map(|line| line.strip_prefix("wchar: ")).and_then(|number| number.parse().ok()).expect("a number")
}

fn checked(group: &ProcessGroup, operation: Operation, want: u64, body: impl FnOnce(&Tensor)) {
    let tensor = Tensor::ones([ENTRIES as i64], (Kind::Float, Device::Cpu));
    group.barrier().expect("all answer");
    let (before, counted) = (written(), group.traffic().bytes(operation));
    body(&tensor);
    let (sent, counted) = (written() - before, group.traffic().bytes(operation) - counted);
    assert_eq!(counted, want, "{operation}, rank {}", group.axis().rank);
    // Headers of Gloo's messages come on top.
    assert!((counted..counted + 64 * 1024).contains(&sent), "{operation}, rank {}: {sent} written, {counted} counted", group.axis().rank);
}

fn counts(group: &ProcessGroup) {
    let Axis { rank, size } = group.axis();
    let (bytes, n) = (4 * ENTRIES as u64, size as u64);
    let rows = vec![ENTRIES / size; size];
    checked(group, Operation::AllReduce, 2 * bytes * (n - 1) / n, |tensor| {
        group.all_reduce(&mut tensor.shallow_clone(), Reduction::Sum).expect("all answer");
    });
    checked(group, Operation::AllGather, bytes / n * (n - 1), |tensor| {
        let _ = group.all_gather(&tensor.narrow(0, 0, rows[0] as i64), &rows).expect("all answer");
    });
    checked(group, Operation::ReduceScatter, bytes / n * (n - 1), |tensor| {
        let _ = group.reduce_scatter(tensor, &rows).expect("all answer");
    });
    // From rank 0: it sends to 1 and 2, and 1 to 3.
    let children = [[1, 0, 0, 0], [2, 0, 0, 0], [2, 1, 0, 0]][size - 2][rank];
    checked(group, Operation::Broadcast, children * bytes, |tensor| {
        group.broadcast(&mut tensor.shallow_clone(), 0).expect("all answer");
    });
    let traffic = group.traffic();
    assert_eq!(traffic.calls(Operation::Barrier), 4);
    assert_eq!(traffic.all_bytes(), Operation::ALL.iter().map(|operation| traffic.bytes(*operation)).sum::<u64>());
}

#[test]
fn of_two_ranks_is_counted() {
    together("volume::of_two_ranks_is_counted", 2, |world| counts(&everyone(world)));
}

#[test]
fn of_four_ranks_is_counted() {
    together("volume::of_four_ranks_is_counted", 4, |world| counts(&everyone(world)));
}
