//! The suite that every activation of circuitlab goes through, and the look-up by name.

use circuitlab_core::{Registry, SparsityActivation, Spec, testing};

use circuitlab_activation_gated as _;

#[test]
fn gated_conforms() {
    let registry = Registry::linked().expect("no name twice");
    for scale in [1.0, 0.3] {
        let activation = registry.build::<dyn SparsityActivation>(&Spec::named("gated").with("scale", scale)).expect("builds");
        testing::activation::conforms(&*activation);
    }
    let error = registry.build::<dyn SparsityActivation>(&Spec::named("gated").with("scale", 0.0)).expect_err("out of range");
    assert_eq!(error.to_string(), "activation `gated`, key `scale`: expected a positive number, got 0");
}
