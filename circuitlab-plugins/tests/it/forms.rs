//! Every form of the step against autograd, on shapes that fill no vector, no block and no tile, and in the types that runs have.

use circuitlab_core::{Batch, Dims, Parameters, Precision, Registry, Spec, StepContext, StepOutput, Transcoder};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::cases::{Built, Case, Regime, autograd, build, cases};

const FORMS: [&str; 3] = ["dense", "kernels", "operations"];

fn registry() -> Registry {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice")
}

fn in_form(case: &Case, form: &str) -> Box<dyn Transcoder> {
    registry().build::<dyn Transcoder>(&case.spec().with("step", form)).expect("builds")
}

fn step(transcoder: &mut dyn Transcoder, built: &Built, case: &Case) -> StepOutput {
    let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
    transcoder.step(&built.params, &built.batch, &context).expect("steps")
}

/// Asserts that losses and gradients are those given, to `tolerance` relative to the largest number of each.
fn assert_is(what: &str, got: &StepOutput, (terms, gradients): &([f64; 3], Vec<Tensor>), names: &Parameters, tolerance: f64) {
    for (got, want) in [&got.mse, &got.sparsity, &got.preact].into_iter().zip(terms) {
        let got = got.double_value(&[]);
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "{what}: a term of the loss is {got}, not {want}");
    }
    for ((spec, got), want) in names.specs().iter().zip(&got.gradients).zip(gradients) {
        let scale = 1.0 + want.abs().max().double_value(&[]);
        let apart = (got - want).abs().max().double_value(&[]);
        assert!(apart <= tolerance * scale, "{what}, {}: {apart} apart, largest {scale}", spec.name);
    }
    for (square, gradient) in got.gradient_squares.iter().flatten().zip(&got.gradients) {
        let want = gradient.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
        assert!((square - want).abs() <= tolerance * (1.0 + want), "{what}: squares {square}, not {want}");
    }
}

fn check(case: &Case) {
    let built = build(case, &registry());
    let want = autograd(case, &built);
    for form in FORMS {
        let mut transcoder = in_form(case, form);
        assert_is(form, &step(&mut *transcoder, &built, case), &want, &built.params, 1e-10);
        let again = step(&mut *transcoder, &built, case);
        assert_is(&format!("{form}, with the memory of a step before"), &again, &want, &built.params, 1e-10);
    }
}

/// The same with other sizes; windows, in units of what pre-activations spread over, from nothing to everything.
fn with_sizes(case: Case, dims: Dims, rows: i64, window: f64) -> Case {
    let activation = match case.activation.name.as_str() {
        "jumprelu" => case.activation.with("bandwidth", window),
        _ => case.activation,
    };
    Case { dims, rows, bandwidth: window, activation, ..case }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_form_is_autograd(case in cases()) {
        check(&case);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn every_form_is_autograd_on_odd_shapes(
        case in cases(),
        (layers, d_model, d_features, rows) in (1_usize..4, 1_usize..200, 1_usize..400, 1_i64..90),
        window in prop_oneof![Just(1e-9), Just(0.3), Just(3.0), Just(1e6)],
    ) {
        check(&with_sizes(case, Dims { layers, d_model, d_features }, rows, window));
    }
}

fn plain_case(transcoder: &'static str, seed: u64) -> Case {
    Case {
        transcoder,
        skip: seed % 2 == 1,
        activation: Spec::named("jumprelu").with("threshold", 0.3).with("bandwidth", 0.5),
        bandwidth: 0.5,
        log: true,
        dims: Dims { layers: 3, d_model: 20, d_features: 70 },
        rows: 41,
        regime: Regime::Mixed,
        penalty: circuitlab_core::PenaltyWeights { lambda: 0.1, mu: 0.05, tanh_scale: 4.0 },
        seed,
    }
}

#[test]
fn more_rows_than_a_tile_holds_are_cut_by_columns_and_blocks() {
    for transcoder in ["clt", "plt"] {
        check(&with_sizes(plain_case(transcoder, 2), Dims { layers: 2, d_model: 130, d_features: 53 }, 1500, 0.5));
    }
}

#[test]
fn micro_batches_of_other_sizes_add_up_in_every_form() {
    let case = plain_case("clt", 5);
    let built = build(&case, &registry());
    let want = autograd(&case, &built);
    for form in FORMS {
        let mut transcoder = in_form(&case, form);
        let mut last = None;
        let mut terms = [0.0; 3];
        for (first, rows) in [(0, 16), (16, 16), (32, 9)] {
            let part = |of: &Tensor| of.narrow(0, first, rows);
            let batch = Batch { inputs: part(&built.batch.inputs), targets: part(&built.batch.targets) };
            let whole = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
            let context = StepContext { accumulate: first > 0, ..whole };
            let output = transcoder.step(&built.params, &batch, &context).expect("steps");
            for (sum, term) in terms.iter_mut().zip([&output.mse, &output.sparsity, &output.preact]) {
                *sum += term.double_value(&[]);
            }
            last = Some(output);
        }
        let [mse, sparsity, preact] = terms.map(Tensor::from);
        let summed = StepOutput { mse, sparsity, preact, ..last.expect("three micro-batches") };
        assert_is(form, &summed, &want, &built.params, 1e-10);
    }
}

#[test]
fn sixteen_bit_weights_are_computed_with_in_full() {
    let case = plain_case("clt", 7);
    let mut built = build(&case, &registry());
    let rounded = |value: &Tensor, precision: Precision, kind: Kind| value.to_kind(precision.kind(kind));
    let short: Vec<Tensor> = built
        .params
        .specs()
        .iter()
        .zip(built.params.values())
        .map(|(spec, value)| rounded(value, spec.precision, Kind::BFloat16))
        .collect();
    let specs = built.params.specs().to_vec();
    let long = short.iter().map(|value| value.to_kind(Kind::Double)).collect();
    built.params = Parameters::new(specs.clone(), long).expect("same shapes");
    let as_float = |rows: &Tensor| rows.to_kind(Kind::Float);
    built.batch = Batch { inputs: as_float(&built.batch.inputs).to_kind(Kind::Double), targets: built.batch.targets };
    let want = autograd(&case, &built);
    built.params = Parameters::new(specs, short).expect("same shapes");
    built.batch = Batch { inputs: as_float(&built.batch.inputs), targets: as_float(&built.batch.targets) };
    for form in FORMS {
        let got = step(&mut *in_form(&case, form), &built, &case);
        assert!(got.gradients.iter().all(|gradient| gradient.kind() == Kind::Float), "{form}: gradients of 32 bits");
        assert_is(form, &got, &want, &built.params, 2e-5);
    }
}

#[test]
fn what_is_not_a_number_shows_in_every_form() {
    let case = plain_case("clt", 11);
    for form in FORMS {
        for place in ["inputs", "targets", "b_enc_1", "W_enc_0", "log_threshold_2", "W_dec_1", "b_dec_0"] {
            let mut built = build(&case, &registry());
            let spoilt = |of: &Tensor| {
                let spoilt = of.copy();
                let _ = spoilt.view([-1]).get(3).fill_(f64::NAN);
                spoilt
            };
            match place {
                "inputs" => built.batch.inputs = spoilt(&built.batch.inputs),
                "targets" => built.batch.targets = spoilt(&built.batch.targets),
                name => built.params.set(name, spoilt(built.params.get(name).expect("named"))).expect("same shape"),
            }
            let output = step(&mut *in_form(&case, form), &built, &case);
            let square: f64 = output.gradients.iter().map(|gradient| gradient.square().sum(Kind::Double).double_value(&[])).sum();
            assert!(!square.is_finite(), "{form}: a NaN in {place} gives a gradient that is finite");
            let told: Option<f64> = output.gradient_squares.map(|squares| squares.iter().sum());
            assert!(told.is_none_or(|square| !square.is_finite()), "{form}: a NaN in {place} gives finite squares");
        }
    }
}

#[test]
fn a_form_that_cannot_be_had_is_refused() {
    let case = plain_case("clt", 9);
    let topk = registry().build::<dyn circuitlab_core::SparsityActivation>(&Spec::named("topk")).expect("builds");
    let built = Built { activation: topk, ..build(&Case { activation: Spec::named("topk"), ..case.clone() }, &registry()) };
    for form in ["kernels", "operations"] {
        let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
        let error = in_form(&case, form).step(&built.params, &built.batch, &context).expect_err("topk is no threshold").to_string();
        assert!(error.contains("the activation is no threshold; use `auto` or `dense`"), "{error}");
    }
    let error = registry().build::<dyn Transcoder>(&Spec::named("clt").with("step", "kernel")).map(drop).expect_err("misspelt").to_string();
    assert!(error.contains("kernels"), "{error}");
    assert_eq!(built.params.values()[0].device(), Device::Cpu);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn a_later_micro_batch_without_the_ones_before_is_refused(case in cases()) {
        let built = build(&case, &registry());
        for form in FORMS {
            let mut transcoder = in_form(&case, form);
            let mut context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
            context.accumulate = true;
            let error = transcoder.step(&built.params, &built.batch, &context).expect_err("nothing to add to");
            prop_assert!(error.to_string().contains("a later micro-batch came without the ones before"), "{form}: {error}");
            context.accumulate = false;
            transcoder.step(&built.params, &built.batch, &context).expect("a first micro-batch");
        }
    }
}
