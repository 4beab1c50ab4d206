//! Parallelism strategies.

use std::net::TcpListener;

use circuitlab_c10d::Environment;
use circuitlab_core::testing::strategy::conforms;
use circuitlab_core::{ParallelismStrategy, Registry, Spec};
use circuitlab_plugins::parallel::{Distributed, Waiting};

#[test]
fn single_conforms() {
    circuitlab_plugins::link();
    conforms(1, |_| {
        let registry = Registry::linked().expect("no name twice");
        registry.build::<dyn ParallelismStrategy>(&Spec::named("single")).expect("it has no settings")
    });
}

/// Every rank of a mesh conforms, as a thread with connections of its own.
fn joins(data: usize, feature: usize) {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let ranks = data * feature;
    conforms(ranks, move |rank| {
        let environment = Environment { rank, ranks, host: "127.0.0.1".to_owned(), port, ..Environment::alone() };
        Box::new(Distributed::join("hybrid", &environment, [data, feature], false, &Waiting::default()).expect("all ranks are there"))
    });
}

#[test]
fn one_process_conforms() {
    joins(1, 1);
}

#[test]
fn two_data_ranks_conform() {
    joins(2, 1);
}

#[test]
fn four_data_ranks_conform() {
    joins(4, 1);
}

#[test]
fn two_feature_ranks_conform() {
    joins(1, 2);
}

#[test]
fn four_feature_ranks_conform() {
    joins(1, 4);
}

#[test]
fn a_mesh_of_two_by_two_conforms() {
    joins(2, 2);
}

#[test]
fn meshes_and_times_that_do_not_fit_are_named() {
    let message = |ranks, mesh, waiting: &Waiting| {
        let environment = Environment { ranks, ..Environment::alone() };
        Distributed::join("hybrid", &environment, mesh, false, waiting).expect_err("refused").to_string()
    };
    let error = message(6, [2, 2], &Waiting::default());
    assert_eq!(error, "strategy `hybrid`: a mesh of data = 2 and feature = 2 is for 4 ranks, and there are 6");
    let error = message(1, [1, 1], &Waiting { patience_seconds: 0, ..Waiting::default() });
    assert_eq!(error, "strategy `hybrid`, key `patience_seconds`: expected 1 to 604800, got 0");
}
