//! Sparsity activations go through the suite of their kind; closed forms against autograd, and how many features fire.

use circuitlab_core::random::Stream;
use circuitlab_core::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, PenaltyWeights, Registry, Result, Scope, SparsityActivation, Spec,
    Update, testing,
};
use proptest::prelude::*;
use tch::{Kind, Tensor};

fn build(spec: &Spec) -> Result<Box<dyn SparsityActivation>> {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice").build(spec)
}

#[test]
fn every_activation_conforms() {
    for spec in [
        Spec::named("relu"),
        Spec::named("jumprelu").with("threshold", 0.2),
        Spec::named("jumprelu").with("threshold", 0.2).with("parameterisation", "direct"),
        Spec::named("topk"),
        Spec::named("topk").with("k", 2),
        Spec::named("topk").with("k", 2).with("positive", false),
        Spec::named("batchtopk"),
        Spec::named("batchtopk").with("k", 2),
        Spec::named("batchtopk").with("k", 1).with("decay", 0.0),
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
    for name in ["topk", "batchtopk"] {
        let error = build(&Spec::named(name).with("k", 0)).expect_err("nothing would fire");
        assert_eq!(error.to_string(), format!("activation `{name}`, key `k`: expected a whole number above 0, got 0"));
    }
    let error = build(&Spec::named("batchtopk").with("decay", 1.0)).expect_err("it would never move");
    assert_eq!(error.to_string(), "activation `batchtopk`, key `decay`: expected a number from 0 to below 1, got 1");
}

/// An activation without its own backward pass.
#[derive(Debug)]
struct ByDefault(Box<dyn SparsityActivation>);

impl SparsityActivation for ByDefault {
    fn parameters(&self) -> Vec<ActivationParameter> {
        self.0.parameters()
    }

    fn activate(&self, pre_acts: &Tensor, params: &[Tensor]) -> Result<Activated> {
        self.0.activate(pre_acts, params)
    }

    fn thresholds(&self, params: &[Tensor]) -> Result<Option<Tensor>> {
        self.0.thresholds(params)
    }

    fn params_with_thresholds(&self, thresholds: Option<&Tensor>) -> Result<Vec<Tensor>> {
        self.0.params_with_thresholds(thresholds)
    }
}

fn noise(shape: &[i64], seed: u64, index: u64) -> Tensor {
    let mut stream = Stream::new(seed, "sparsity tests", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

struct Case {
    pre_acts: Tensor,
    pull: Tensor,
    norms: Tensor,
    params: Vec<Tensor>,
    penalty: PenaltyWeights,
    ranks: i64,
}

impl Case {
    fn new(activation: &dyn SparsityActivation, rows: i64, features: i64, seed: u64) -> Self {
        let own = |place: usize| noise(&[features], seed, 10 + place as u64);
        Self {
            pre_acts: noise(&[rows, features], seed, 1),
            pull: noise(&[rows, features], seed, 2),
            norms: noise(&[features], seed, 3).abs() + 0.1,
            params: (0..activation.parameters().len()).map(own).collect(),
            penalty: PenaltyWeights { lambda: 0.7, mu: 0.3, tanh_scale: 2.0 },
            ranks: 1 + (seed % 3) as i64,
        }
    }

    fn backward(&self, activation: &dyn SparsityActivation) -> ActivationGradients {
        let activated = activation.activate(&self.pre_acts, &self.params).expect("it activates");
        let input = BackwardInput {
            pre_acts: &self.pre_acts,
            params: &self.params,
            activated: &activated,
            grad_acts: self.pull.copy(),
            decoder_norms: &self.norms,
            penalty: self.penalty,
            mean_rows: self.pre_acts.size()[0] * self.ranks,
        };
        tch::no_grad(|| activation.backward(input)).expect("it goes backward")
    }
}

fn apart(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    (got - want).abs().max().double_value(&[])
}

fn specs() -> impl Strategy<Value = Spec> {
    // The rectangle kernel of a bandwidth of nothing catches no entry: what remains is the part that is not through the jump.
    let jumprelu = Spec::named("jumprelu").with("bandwidth", 1e-300);
    prop_oneof![
        Just(Spec::named("relu")),
        Just(jumprelu.clone()),
        Just(jumprelu.with("parameterisation", "direct")),
        (1_i64..6, any::<bool>()).prop_map(|(k, positive)| Spec::named("topk").with("k", k).with("positive", positive)),
        (1_i64..6).prop_map(|k| Spec::named("batchtopk").with("k", k)),
    ]
}

proptest! {
    #[test]
    fn the_default_backward_is_the_closed_form(spec in specs(), rows in 1_i64..9, features in 1_i64..12, seed: u64) {
        let activation = build(&spec).expect("builds");
        let case = Case::new(&*activation, rows, features, seed);
        let want = case.backward(&*activation);
        let by_default = ByDefault(build(&spec).expect("builds"));
        let got = case.backward(&by_default);
        let pairs = [
            ("sparsity", &got.sparsity, &want.sparsity),
            ("preact", &got.preact, &want.preact),
            ("pre_acts", &got.pre_acts, &want.pre_acts),
            ("decoder_norms", &got.decoder_norms, &want.decoder_norms),
        ];
        for (name, got, want) in pairs {
            prop_assert!(apart(got, want) < 1e-10, "{name}: {} apart", apart(got, want));
        }
        for ((own, got), (place, want)) in activation.parameters().iter().zip(&got.params).zip(want.params.iter().enumerate()) {
            // What is followed stays by default; the closed form moves it.
            let want = if own.update == Update::Tracked { &case.params[place] / case.ranks as f64 } else { want.shallow_clone() };
            prop_assert!(apart(got, &want) < 1e-10, "{}: {} apart", own.name, apart(got, &want));
        }
        prop_assert!(!case.pre_acts.requires_grad() && !case.norms.requires_grad());
    }

    #[test]
    fn exactly_k_fire_however_many_are_equal(k in 1_i64..9, rows in 1_i64..7, features in 1_i64..12, levels in 1_i64..4, seed: u64) {
        // A few levels only, so that most entries are equal to others.
        let pre_acts = (noise(&[rows, features], seed, 1) * levels).round();
        let count = |active: &Tensor, dims: &[i64]| active.sum_dim_intlist(dims, false, Kind::Int64);
        let activate = |spec: Spec| build(&spec).expect("builds").activate(&pre_acts, &[]).expect("it activates");
        let most = k.min(features);

        let any_sign = activate(Spec::named("topk").with("k", k).with("positive", false));
        prop_assert_eq!(count(&any_sign.active, &[1]), Tensor::full([rows], most, (Kind::Int64, tch::Device::Cpu)));
        let dropped = pre_acts.masked_fill(&any_sign.active, f64::NEG_INFINITY).max_dim(1, false).0;
        let kept = pre_acts.masked_fill(&any_sign.active.logical_not(), f64::INFINITY).min_dim(1, false).0;
        prop_assert!(kept.ge_tensor(&dropped).all().int64_value(&[]) == 1, "what fires is not below what does not");

        let positive = activate(Spec::named("topk").with("k", k));
        prop_assert_eq!(count(&positive.active, &[1]), count(&pre_acts.gt(0.0), &[1]).clamp_max(most));

        let batch = activate(Spec::named("batchtopk").with("k", k));
        let all = count(&pre_acts.gt(0.0), &[0, 1]).int64_value(&[]).min(k.saturating_mul(rows));
        prop_assert_eq!(count(&batch.active, &[0, 1]).int64_value(&[]), all);
        prop_assert_eq!(&batch.acts, &(&pre_acts * &batch.active));
    }
}

#[test]
fn the_running_threshold_starts_at_the_first_batch_and_then_follows() {
    let activation = build(&Spec::named("batchtopk").with("k", 2).with("decay", 0.75)).expect("builds");
    assert_eq!(activation.scope(), Scope::Batch);
    let mut case = Case::new(&*activation, 6, 8, 3);
    let smallest = |case: &Case| {
        let activated = activation.activate(&case.pre_acts, &case.params).expect("it activates");
        activated.acts.masked_select(&activated.active).min().double_value(&[])
    };
    (case.ranks, case.params) = (1, vec![Tensor::from_slice(&[-1.0; 8])]);
    let first = smallest(&case);
    case.params = case.backward(&*activation).params;
    assert_eq!(case.params[0], Tensor::from_slice(&[first; 8]));
    case.pre_acts = noise(&[6, 8], 9, 9);
    let second = smallest(&case);
    case.params = case.backward(&*activation).params;
    assert!(apart(&case.params[0], &Tensor::from_slice(&[0.75 * first + 0.25 * second; 8])) < 1e-12);
    case.pre_acts = noise(&[6, 8], 9, 9).abs().neg();
    let before = case.params[0].copy();
    assert_eq!(case.backward(&*activation).params[0], before, "a batch in which nothing fires leaves it");
}
