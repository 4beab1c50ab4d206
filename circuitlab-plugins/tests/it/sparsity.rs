//! Sparsity activations go through the suite of their kind.

use circuitlab_core::{Registry, SparsityActivation, Spec, testing};

fn build(spec: &Spec) -> circuitlab_core::Result<Box<dyn SparsityActivation>> {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice").build(spec)
}

#[test]
fn every_activation_conforms() {
    for spec in [
        Spec::named("relu"),
        Spec::named("jumprelu").with("threshold", 0.2),
        Spec::named("jumprelu").with("threshold", 0.2).with("parameterisation", "direct"),
    ] {
        testing::activation::conforms(&*build(&spec).expect("builds"));
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for (key, value) in [("threshold", 0.0), ("threshold", -1.0), ("bandwidth", 0.0)] {
        let error = build(&Spec::named("jumprelu").with(key, value)).expect_err("out of range");
        assert_eq!(error.to_string(), format!("activation `jumprelu`, key `{key}`: expected a positive number, got {value}"));
    }
}
