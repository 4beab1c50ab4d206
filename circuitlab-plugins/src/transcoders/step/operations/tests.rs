//! Against autograd and the dense step.

use circuitlab_core::{Batch, Dims, Parameters, PenaltyWeights, Registry, Spec, StepContext, StepOutput, ThresholdForm};
use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::transcoders::dictionary::{Layer, Reach, layers};
use crate::transcoders::step::cases::{Built, Case, Regime, autograd, build, cases, close};
use crate::transcoders::step::dense;

fn reach(case: &Case) -> Reach {
    if case.transcoder == "clt" { |layers, source| source..layers } else { |_, source| source..source + 1 }
}

fn registry() -> Registry {
    crate::link();
    Registry::linked().expect("no name twice")
}

fn forms(built: &Built, params: &Parameters) -> Vec<ThresholdForm> {
    let of = |index| built.activation.threshold_form(&Layer::of(params, index).expect("a layer").own).expect("shapes fit");
    (0..layers(params)).map(|index| of(index).expect("a threshold")).collect()
}

fn whole(case: &Case, built: &Built) -> StepOutput {
    let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
    super::step(&built.params, reach(case), &built.batch, &context, &forms(built, &built.params), &mut Vec::new()).expect("steps")
}

/// The largest difference, as a share of the largest value or 1.
fn apart(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    if want.numel() == 0 {
        return 0.0;
    }
    let want = want.to_kind(Kind::Double);
    (got.to_kind(Kind::Double) - &want).abs().max().double_value(&[]) / (1.0 + want.abs().max().double_value(&[]))
}

fn assert_same(got: &StepOutput, want: &StepOutput, tolerance: f64) -> Result<(), TestCaseError> {
    let pairs = [
        ("mse", &got.mse, &want.mse),
        ("sparsity", &got.sparsity, &want.sparsity),
        ("preact", &got.preact, &want.preact),
        ("squared_error", &got.squared_error, &want.squared_error),
        ("active_rows", &got.active_rows, &want.active_rows),
    ];
    for (name, got, want) in pairs {
        prop_assert!(apart(got, want) <= tolerance, "{name}: {got:?} {want:?}, {} apart", apart(got, want));
    }
    prop_assert_eq!(got.gradients.len(), want.gradients.len());
    for (place, (got, want)) in got.gradients.iter().zip(&want.gradients).enumerate() {
        prop_assert!(apart(got, want) <= tolerance, "gradient {place}: {} apart", apart(got, want));
    }
    Ok(())
}

/// Activations so few that no layer is dense; a bias far below the threshold leaves few rows active.
fn sparse_cases() -> impl Strategy<Value = Case> {
    let sizes = (1_usize..4, 1_usize..9, 1_usize..200, 1_i64..70);
    let bandwidth = prop_oneof![Just(1e-9), 0.05..2.0, Just(1e9)];
    (cases(), sizes, bandwidth).prop_map(|(case, (layers, d_model, d_features, rows), bandwidth)| {
        let activation =
            if case.activation.name == "jumprelu" { case.activation.clone().with("bandwidth", bandwidth) } else { case.activation.clone() };
        Case { dims: Dims { layers, d_model, d_features }, rows, bandwidth, activation, ..case }
    })
}

/// Lowers every bias by as much of the pre-activations' spread as leaves few above.
fn quieten(built: &mut Built, by: f64) {
    for index in 0..layers(&built.params) {
        let lower = built.params.get(&format!("b_enc_{index}")).expect("named") - by;
        built.params.set(&format!("b_enc_{index}"), lower).expect("same shape");
    }
}

fn dense_step(case: &Case, built: &Built) -> StepOutput {
    let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
    dense::step(&built.params, reach(case), &built.batch, &context, &mut Vec::new()).expect("steps")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_step_is_autograds(case in cases()) {
        let built = build(&case, &registry());
        let ([mse, sparsity, preact], grads) = autograd(&case, &built);
        let got = whole(&case, &built);
        for (name, got, want) in [("mse", &got.mse, mse), ("sparsity", &got.sparsity, sparsity), ("preact", &got.preact, preact)] {
            prop_assert!(close(got.double_value(&[]), want), "{name}: {} is not {want}", got.double_value(&[]));
        }
        prop_assert_eq!(got.gradients.len(), grads.len());
        for ((spec, got), want) in built.params.specs().iter().zip(&got.gradients).zip(&grads) {
            prop_assert!(apart(got, want) <= 1e-10, "{}: {} apart", spec.name, apart(got, want));
        }
    }

    #[test]
    fn the_step_is_the_dense_ones(case in sparse_cases(), quiet in -0.2..0.3) {
        let mut built = build(&case, &registry());
        quieten(&mut built, quiet);
        assert_same(&whole(&case, &built), &dense_step(&case, &built), 1e-10)?;
    }

    #[test]
    fn in_f32_it_is_the_dense_ones_to_rounding(case in sparse_cases(), quiet in -0.2..0.3) {
        let mut built = build(&case, &registry());
        // Pre-activations that are exact sums in one order and rounded ones in the other fall to either side of a threshold.
        prop_assume!(!matches!(case.regime, Regime::AtThreshold));
        quieten(&mut built, quiet);
        let narrow = |tensor: &Tensor| tensor.to_kind(Kind::Float);
        built.params = Parameters::new(built.params.specs().to_vec(), built.params.values().iter().map(narrow).collect()).expect("fits");
        built.batch = Batch { inputs: narrow(&built.batch.inputs), targets: narrow(&built.batch.targets) };
        let (got, want) = (whole(&case, &built), dense_step(&case, &built));
        prop_assert!(got.gradients.iter().all(|gradient| gradient.kind() == Kind::Float));
        // Of two ways to sum an entry at the very edge of a window, one may count it in.
        let [got_mse, want_mse] = [&got.mse, &want.mse].map(|mse| mse.double_value(&[]));
        prop_assert!((got_mse - want_mse).abs() <= 1e-4 * (1.0 + want_mse), "{got_mse} {want_mse}");
        assert_same(&got, &want, 2e-4)?;
    }

    #[test]
    fn micro_batches_add_up(case in sparse_cases(), cut in 0.0..1.0) {
        let built = build(&case, &registry());
        let first = ((case.rows as f64 * cut) as i64).clamp(0, case.rows - 1);
        let (forms, mut before, mut steps) = (forms(&built, &built.params), Vec::new(), Vec::new());
        for (start, rows) in [(0, first), (first, case.rows - first)].into_iter().filter(|(_, rows)| *rows > 0) {
            let of = |tensor: &Tensor| tensor.narrow(0, start, rows);
            let batch = Batch { inputs: of(&built.batch.inputs), targets: of(&built.batch.targets) };
            let whole = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
            let context = StepContext { accumulate: !steps.is_empty(), ..whole };
            steps.push(super::step(&built.params, reach(&case), &batch, &context, &forms, &mut before).expect("steps"));
        }
        let sum = |of: fn(&StepOutput) -> &Tensor| steps.iter().map(of).fold(of(&steps[0]).zeros_like(), |sum, part| sum + part);
        let got = StepOutput {
            mse: sum(|step| &step.mse), sparsity: sum(|step| &step.sparsity), preact: sum(|step| &step.preact),
            squared_error: sum(|step| &step.squared_error), active_rows: sum(|step| &step.active_rows),
            gradients: before, gradient_squares: None, stages: Vec::new(),
        };
        assert_same(&got, &whole(&case, &built), 1e-10)?;
    }
}

fn fixed(d_features: usize, rows: i64) -> Case {
    Case {
        transcoder: "clt",
        skip: true,
        activation: Spec::named("jumprelu").with("threshold", 0.3).with("bandwidth", 0.4),
        bandwidth: 0.4,
        log: true,
        dims: Dims { layers: 3, d_model: 8, d_features },
        rows,
        regime: Regime::Mixed,
        penalty: PenaltyWeights { lambda: 0.3, mu: 0.02, tanh_scale: 4.0 },
        seed: 7,
    }
}

#[test]
fn layers_of_several_blocks_and_both_forms_agree_with_the_dense_step() {
    // 4096 rows leave 64 features to a block. The first layer is all active and so dense, the others are sparse.
    let case = fixed(150, 4096);
    let mut built = build(&case, &registry());
    quieten(&mut built, 0.1);
    let raised = built.params.get("b_enc_0").expect("named") + 100.0;
    built.params.set("b_enc_0", raised).expect("same shape");
    let count = |index: i64| {
        let layer = Layer::of(&built.params, index as usize).expect("a layer");
        let form = &forms(&built, &built.params)[index as usize];
        let selected = super::select::select(&layer, form, &built.batch.inputs.select(1, index)).expect("shapes fit");
        selected.map(|selected| selected.entries.rows.numel())
    };
    assert_eq!(count(0), None, "dense");
    assert!([1, 2].into_iter().all(|index| count(index).is_some_and(|entries| entries > 100)), "{:?}", [1, 2].map(count));
    assert_same(&whole(&case, &built), &dense_step(&case, &built), 1e-10).expect("the same");
}

#[test]
fn parameters_in_bf16_give_the_step_of_their_values_in_f32() {
    let case = fixed(90, 40);
    let mut built = build(&case, &registry());
    quieten(&mut built, 0.05);
    let round = |built: &Built, weights: Kind| {
        let values = built.params.specs().iter().zip(built.params.values()).map(|(spec, value)| {
            let rounded = if spec.shape.len() > 1 { value.to_kind(Kind::BFloat16) } else { value.shallow_clone() };
            rounded.to_kind(if spec.shape.len() > 1 { weights } else { Kind::Float })
        });
        Parameters::new(built.params.specs().to_vec(), values.collect()).expect("fits")
    };
    let batch =
        |built: &Built| Batch { inputs: built.batch.inputs.to_kind(Kind::Float), targets: built.batch.targets.to_kind(Kind::Float) };
    let with = |params: Parameters, batch: Batch| Built { params, batch, ..build(&case, &registry()) };
    let (narrow, wide) = (with(round(&built, Kind::BFloat16), batch(&built)), with(round(&built, Kind::Float), batch(&built)));
    let want = whole(&case, &wide);
    for got in [whole(&case, &narrow), dense_step(&case, &narrow)] {
        assert!(got.gradients.iter().all(|gradient| gradient.kind() == Kind::Float), "gradients are of 32 bits");
        assert_same(&got, &want, 1e-5).expect("the same");
    }
}

#[test]
fn values_that_are_no_numbers_show_in_the_gradient() {
    let case = fixed(90, 40);
    for bad in [f64::NAN, f64::INFINITY] {
        let mut built = build(&case, &registry());
        quieten(&mut built, 0.05);
        let _ = built.batch.inputs.narrow(0, 3, 1).narrow(1, 1, 1).narrow(2, 2, 1).fill_(bad);
        let got = whole(&case, &built);
        assert!(got.gradients.iter().any(|gradient| gradient.isfinite().all().int64_value(&[]) == 0), "{bad} is not seen");
    }
}

#[test]
fn entries_at_the_very_threshold_are_neither_active_nor_pulled() {
    let case = fixed(90, 40);
    let mut built = build(&case, &registry());
    quieten(&mut built, 0.1);
    for index in 0..layers(&built.params) {
        let layer = Layer::of(&built.params, index).expect("a layer");
        let theta = built.activation.thresholds(&layer.own).expect("fits").expect("thresholds");
        let [w_enc, b_enc] = [&layer.w_enc, layer.b_enc].map(Tensor::copy);
        let _ = w_enc.narrow(0, 5, 2).fill_(0.0);
        b_enc.narrow(0, 5, 2).copy_(&theta.narrow(0, 5, 2));
        built.params.set(&format!("W_enc_{index}"), w_enc).expect("same shape");
        built.params.set(&format!("b_enc_{index}"), b_enc).expect("same shape");
    }
    let layer = Layer::of(&built.params, 1).expect("a layer");
    let form = &forms(&built, &built.params)[1];
    let selected = super::select::select(&layer, form, &built.batch.inputs.select(1, 1)).expect("fits").expect("sparse");
    let active = selected.entries.active.sum(Kind::Int64).int64_value(&[]);
    assert_eq!(selected.entries.rows.numel() as i64 - active, 2 * case.rows, "all rows of two features");
    let got = whole(&case, &built);
    assert_same(&got, &dense_step(&case, &built), 1e-10).expect("the same");
    assert!(got.active_rows.narrow(1, 5, 2).abs().max().double_value(&[]) < 0.5);
}
