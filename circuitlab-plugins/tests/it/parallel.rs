//! Parallelism strategies.

use circuitlab_core::testing::strategy::conforms;
use circuitlab_core::{ParallelismStrategy, Registry, Spec};

#[test]
fn single_conforms() {
    circuitlab_plugins::link();
    conforms(1, |_| {
        let registry = Registry::linked().expect("no name twice");
        registry.build::<dyn ParallelismStrategy>(&Spec::named("single")).expect("it has no settings")
    });
}
