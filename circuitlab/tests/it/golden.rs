//! The closed-form step, clipping and Adam against twelve steps recorded in f64 by an independent dense implementation.

use std::path::PathBuf;

use circuitlab::recording::{Recording, optimiser};
use circuitlab::train::{Adam, MomentKind, OptimiserConfig};
use circuitlab_core::{PenaltyWeights, Registry};
use tch::{Kind, Tensor};

/// Every form that a step has.
const FORMS: [&str; 4] = ["auto", "dense", "kernels", "operations"];

fn open(name: &str, form: &str) -> Recording {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training").join(name);
    let transcoder = Recording::transcoder(&path).expect("a recording").with("step", form);
    Recording::open(&registry, &path, Kind::Double, Some(&transcoder), None).expect("a recording")
}

/// The largest difference relative to the size of the recorded tensor.
fn apart(got: &Tensor, want: &Tensor) -> f64 {
    let scale = want.abs().max().double_value(&[]).max(1e-300);
    (got - want).abs().max().double_value(&[]) / scale
}

fn replays(name: &str, form: &str, micro_batches: usize) {
    let mut recording = open(name, form).with_micro_batches(micro_batches);
    let mut params = recording.parameters("init").expect("initial parameters");
    let mut adam = optimiser(&params);
    let steps = recording.tensor("steps").expect("the table");
    for step in 0..12 {
        let column = |index| steps.double_value(&[step, index]);
        let penalty = PenaltyWeights { lambda: column(5), mu: column(6), tanh_scale: 4.0 };
        let batch = recording.batch(step as usize).expect("a batch");
        let got = recording.replay(&mut params, &mut adam, &batch, penalty, column(7), step == 0).expect("steps");
        for (what, got, want) in [
            ("mse", got.mse, column(0)),
            ("sparsity", got.sparsity, column(1)),
            ("preact", got.preact, column(2)),
            ("l0", got.l0, column(3)),
            ("gradient norm", got.gradient_norm, column(4)),
        ] {
            assert!((got - want).abs() <= 1e-9 * want.abs(), "{name}, {form}, step {step}, {what}: {got} is not {want}");
        }
        if step == 0 {
            let want = recording.parameters("grad0").expect("gradients");
            for ((spec, want), got) in want.specs().iter().zip(want.values()).zip(&got.gradients) {
                assert!(apart(got, want) < 1e-9, "{name}, {form}, gradient of {}: {} apart", spec.name, apart(got, want));
            }
        }
    }
    let want = recording.parameters("final").expect("final parameters");
    for ((spec, want), got) in want.specs().iter().zip(want.values()).zip(params.values()) {
        assert!(apart(got, want) < 1e-9, "{name}, {form}, final {}: {} apart", spec.name, apart(got, want));
    }
}

#[test]
fn a_recorded_clt_run_is_replayed() {
    for form in FORMS {
        replays("clt_golden.safetensors", form, 1);
    }
}

#[test]
fn a_recorded_plt_run_is_replayed() {
    for form in FORMS {
        replays("plt_golden.safetensors", form, 1);
    }
}

#[test]
fn recorded_runs_are_replayed_in_micro_batches() {
    for (form, micro_batches) in FORMS.into_iter().flat_map(|form| [(form, 2), (form, 5)]) {
        replays("clt_golden.safetensors", form, micro_batches);
        replays("plt_golden.safetensors", form, micro_batches);
    }
}

/// The mean loss over the recorded batches after twenty rounds of them.
fn trained(moments: MomentKind) -> f64 {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/training/clt_golden.safetensors");
    let mut recording = Recording::open(&registry, &path, Kind::Float, None, None).expect("a recording");
    let mut params = recording.parameters("init").expect("initial parameters");
    let mut adam = Adam::new(OptimiserConfig { moments, ..OptimiserConfig::default() }, &params);
    let penalty = PenaltyWeights { lambda: 0.5, mu: 1e-5, tanh_scale: 4.0 };
    let mut loss = 0.0;
    for round in 0..20 {
        loss = 0.0;
        for batch in 0..12 {
            let batch = recording.batch(batch).expect("a batch");
            let got =
                recording.replay(&mut params, &mut adam, &batch, penalty, if round < 15 { 1e-2 } else { 1e-3 }, false).expect("steps");
            loss += (got.mse + got.sparsity + got.preact) / 12.0;
        }
    }
    loss
}

#[test]
fn moments_of_8_bits_lead_to_the_same_loss() {
    let (full, eight) = (trained(MomentKind::F32), trained(MomentKind::Int8));
    assert!((eight / full - 1.0).abs() < 0.03, "{eight} with moments of 8 bits, {full} with full ones");
}
