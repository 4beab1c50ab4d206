//! The closed-form step against autograd, and saved folders against what was saved.

use std::path::Path;

use circuitlab_core::{
    Batch, Dims, Mesh, Parameters, PenaltyWeights, Registry, Saving, Scales, SparsityActivation, Spec, StepContext, Transcoder,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::cases::{Built, Case, Regime, autograd, cases, close, noise};

fn registry() -> Registry {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice")
}

fn build(case: &Case) -> Built {
    crate::cases::build(case, &registry())
}

/// Saves into a folder.
fn save(case: &Case, built: &Built, folder: &Path, scales: Scales<'_>) {
    let saving = Saving {
        transcoder: &*built.transcoder,
        activation: &*built.activation,
        dims: case.dims,
        scales,
        specs: built.params.specs(),
        params: &built.params,
        mesh: Mesh::SINGLE,
    };
    saving.into_folder(folder).expect("saves");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_closed_form_step_is_autograds(case in cases()) {
        let mut built = build(&case);
        let ([mse, sparsity, preact], grads) = autograd(&case, &built);
        let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
        let got = built.transcoder.step(&built.params, &built.batch, &context).expect("steps");
        for (name, got, want) in [("mse", &got.mse, mse), ("sparsity", &got.sparsity, sparsity), ("preact", &got.preact, preact)] {
            prop_assert!(close(got.double_value(&[]), want), "{name}: {} is not {want}", got.double_value(&[]));
        }
        prop_assert_eq!(got.gradients.len(), grads.len());
        for ((spec, got), want) in built.params.specs().iter().zip(&got.gradients).zip(&grads) {
            prop_assert_eq!(got.size(), want.size());
            let scale = 1.0 + want.abs().max().double_value(&[]);
            let apart = (got - want).abs().max().double_value(&[]);
            prop_assert!(apart <= 1e-10 * scale, "{}: {apart} apart", spec.name);
        }
        let per_layer = got.squared_error.sum(Kind::Double).double_value(&[]) / case.rows as f64;
        prop_assert!(close(per_layer, mse));
    }

    #[test]
    fn a_saved_folder_is_read_back_and_decodes_the_same(case in cases()) {
        let built = build(&case);
        let folder = tempfile::tempdir().expect("a folder");
        let ones = vec![1.0; case.dims.layers];
        save(&case, &built, folder.path(), Scales { inputs: &ones, targets: &ones });
        prop_assert_eq!(built.transcoder.has_thresholds(folder.path()).expect("files"), case.activation.name == "jumprelu");
        let (dims, params) = built.transcoder.load(folder.path(), &*built.activation, Kind::Double, Device::Cpu).expect("loads");
        prop_assert_eq!(dims, case.dims);
        // A threshold that went through its exponential and back may be one rounding off; a pre-activation that stands at the
        // very threshold then falls to either side.
        let tolerance = if matches!(case.regime, Regime::AtThreshold) { f64::INFINITY } else { 1e-12 };
        let reconstruct = |params: &Parameters| {
            let acts: Vec<Tensor> = (0..case.dims.layers)
                .map(|s| built.transcoder.encode(params, &*built.activation, s, &built.batch.inputs.select(1, s as i64)).expect("encodes"))
                .collect();
            let all: Vec<Tensor> = (0..case.dims.layers).map(|t| built.transcoder.decode(params, &acts, &built.batch.inputs.select(1, t as i64), t).expect("decodes")).collect();
            Tensor::stack(&all, 1)
        };
        let apart = (reconstruct(&params) - reconstruct(&built.params)).abs().max().double_value(&[]);
        prop_assert!(apart <= tolerance, "{apart} apart");
    }

    #[test]
    fn saved_parameters_take_and_give_raw_activations(case in cases()) {
        let built = build(&case);
        let layers = case.dims.layers;
        let scales = |index| noise(&[layers as i64], index).abs() + 0.5;
        let (input_scales, target_scales) = (scales(case.seed ^ 2), scales(case.seed ^ 3));
        let list = |scales: &Tensor| Vec::<f64>::try_from(scales).expect("one axis");
        let folder = tempfile::tempdir().expect("a folder");
        save(&case, &built, folder.path(), Scales { inputs: &list(&input_scales), targets: &list(&target_scales) });
        let (_, folded) = built.transcoder.load(folder.path(), &*built.activation, Kind::Double, Device::Cpu).expect("loads");
        let raw = &built.batch.inputs / input_scales.view([1, -1, 1]);
        for s in 0..layers {
            // A pre-activation that stands at the very threshold may round to either side.
            if matches!(case.regime, Regime::AtThreshold) { continue; }
            let acts = |params, inputs: &Tensor| (0..=s)
                .map(|s| built.transcoder.encode(params, &*built.activation, s, &inputs.select(1, s as i64)).expect("encodes"))
                .collect::<Vec<_>>();
            let normal = built.transcoder.decode(&built.params, &acts(&built.params, &built.batch.inputs), &built.batch.inputs.select(1, s as i64), s).expect("decodes");
            let of_raw = built.transcoder.decode(&folded, &acts(&folded, &raw), &raw.select(1, s as i64), s).expect("decodes");
            let apart = (of_raw * target_scales.double_value(&[s as i64]) - normal).abs().max().double_value(&[]);
            prop_assert!(apart < 1e-10, "{apart} apart");
        }
    }

    #[test]
    fn calibrated_features_fire_at_the_chosen_rate(seed: u64, rows in 2_i64..60, rate in 0.05..0.95) {
        let dims = Dims { layers: 2, d_model: 6, d_features: 9 };
        let case = Case {
            transcoder: "clt", skip: false, activation: Spec::named("jumprelu"), bandwidth: 1.0, log: true, dims, rows, regime: Regime::Mixed,
            penalty: PenaltyWeights { lambda: 0.0, mu: 0.0, tanh_scale: 4.0 }, seed,
        };
        let mut built = build(&case);
        built.transcoder.calibrate(&mut built.params, &*built.activation, &built.batch.inputs, rate).expect("calibrates");
        let want = rows - ((rows as f64 * (1.0 - rate)).round() as i64).clamp(1, rows - 1);
        for layer in 0..2 {
            let acts = built.transcoder.encode(&built.params, &*built.activation, layer, &built.batch.inputs.select(1, layer as i64)).expect("encodes");
            let fired = acts.gt(0.0).sum_dim_intlist(0, false, Kind::Int64);
            prop_assert!(Vec::<i64>::try_from(&fired).expect("one axis").iter().all(|fired| *fired == want));
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let case = Case {
        transcoder: "clt",
        skip: false,
        activation: Spec::named("jumprelu"),
        bandwidth: 1.0,
        log: true,
        dims: Dims { layers: 2, d_model: 6, d_features: 9 },
        rows: 4,
        regime: Regime::Mixed,
        penalty: PenaltyWeights { lambda: 0.1, mu: 0.1, tanh_scale: 4.0 },
        seed: 1,
    };
    let mut built = build(&case);
    let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
    let wrong = Batch { inputs: noise(&[4, 2, 7], 0), targets: noise(&[4, 2, 7], 0) };
    let error = built.transcoder.step(&built.params, &wrong, &context).expect_err("d_model is 6");
    assert_eq!(error.to_string(), "step, inputs: expected shape [rows=any, layer=2, d_model=6], got [4, 2, 7]");
    assert!(built.transcoder.encode(&built.params, &*built.activation, 0, &noise(&[4, 7], 0)).is_err());
    assert!(built.transcoder.encode(&built.params, &*built.activation, 2, &noise(&[4, 6], 0)).is_err());
    assert!(built.transcoder.decode(&built.params, &[noise(&[4, 9], 0)], &noise(&[4, 6], 0), 1).is_err());
    assert!(built.transcoder.calibrate(&mut built.params, &*built.activation, &noise(&[4, 2, 6], 0), 1.0).is_err());
}

#[test]
fn every_transcoder_conforms() {
    let registry = registry();
    let with_skip = |name| Spec::named(name).with("skip", true);
    for transcoder in [Spec::named("clt"), Spec::named("plt"), with_skip("clt"), with_skip("plt")] {
        for activation in [
            Spec::named("relu"),
            Spec::named("jumprelu"),
            Spec::named("topk"),
            Spec::named("topk").with("k", 3),
            Spec::named("topk").with("k", 3).with("positive", false),
            Spec::named("batchtopk").with("k", 3),
        ] {
            let mut transcoder = registry.build::<dyn Transcoder>(&transcoder).expect("builds");
            let activation = registry.build::<dyn SparsityActivation>(&activation).expect("builds");
            let scratch = tempfile::tempdir().expect("a folder");
            circuitlab_core::testing::transcoder::conforms(&mut *transcoder, &*activation, scratch.path());
        }
    }
}
