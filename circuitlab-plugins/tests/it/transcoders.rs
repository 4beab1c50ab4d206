//! The closed-form step against autograd, and saved folders against what was saved.

use circuitlab_core::{
    Batch, Dims, ParallelismStrategy, Parameters, PenaltyWeights, Registry, SparsityActivation, Spec, StepContext, Transcoder,
    random::Stream,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn registry() -> Registry {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice")
}

fn noise(shape: &[i64], index: u64) -> Tensor {
    let mut stream = Stream::new(5, "transcoder tests", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// Where the thresholds lie against the pre-activations.
#[derive(Debug, Clone, Copy)]
enum Regime {
    Mixed,
    AllSilent,
    AllActive,
    AtThreshold,
}

#[derive(Debug, Clone)]
struct Case {
    transcoder: &'static str,
    activation: Spec,
    bandwidth: f64,
    log: bool,
    dims: Dims,
    rows: i64,
    regime: Regime,
    penalty: PenaltyWeights,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1_usize..5, 1_usize..9, 1_usize..14, 1_i64..12);
    let regime = prop_oneof![
        4 => Just(Regime::Mixed),
        1 => Just(Regime::AllSilent),
        1 => Just(Regime::AllActive),
        1 => Just(Regime::AtThreshold)
    ];
    let weights = (0.0..1.0, 0.0..0.1, 0.5..6.0).prop_map(|(lambda, mu, tanh_scale)| PenaltyWeights { lambda, mu, tanh_scale });
    let kind = (prop_oneof![Just("clt"), Just("plt")], 0_usize..3, 0.05..2.0);
    (sizes, regime, weights, kind, any::<u64>()).prop_map(
        |((layers, d_model, d_features, rows), regime, penalty, (transcoder, which, bandwidth), seed)| {
            let activation = match which {
                0 => Spec::named("relu"),
                1 => Spec::named("jumprelu").with("threshold", 0.3).with("bandwidth", bandwidth),
                _ => Spec::named("jumprelu").with("threshold", 0.3).with("bandwidth", bandwidth).with("parameterisation", "direct"),
            };
            Case {
                transcoder,
                activation,
                bandwidth,
                log: which == 1,
                dims: Dims { layers, d_model, d_features },
                rows,
                regime,
                penalty,
                seed,
            }
        },
    )
}

struct Built {
    transcoder: Box<dyn Transcoder>,
    activation: Box<dyn SparsityActivation>,
    strategy: Box<dyn ParallelismStrategy>,
    params: Parameters,
    batch: Batch,
}

fn build(case: &Case) -> Built {
    let registry = registry();
    let transcoder = registry.build::<dyn Transcoder>(&Spec::named(case.transcoder)).expect("builds");
    let activation = registry.build::<dyn SparsityActivation>(&case.activation).expect("builds");
    let strategy = registry.build::<dyn ParallelismStrategy>(&Spec::named("single")).expect("builds");
    let specs = transcoder.parameters(case.dims, &*activation).expect("small sizes");
    let mut params = Parameters::init(specs.clone(), case.seed, Kind::Double, Device::Cpu).expect("fits");
    let shape = [case.rows, case.dims.layers as i64, case.dims.d_model as i64];
    let batch = Batch { inputs: noise(&shape, case.seed), targets: noise(&shape, case.seed ^ 1) };
    for (place, spec) in specs.iter().enumerate() {
        let jitter = noise(&spec.shape, case.seed.wrapping_add(10 + place as u64)) * 0.1;
        let bias = match case.regime {
            Regime::AllSilent if spec.name.starts_with("b_enc") => -100.0,
            Regime::AllActive if spec.name.starts_with("b_enc") => 100.0,
            _ => 0.0,
        };
        let value = params.get(&spec.name).expect("named").copy() + jitter + bias;
        params.set(&spec.name, value).expect("same shape");
    }
    if matches!(case.regime, Regime::AtThreshold) {
        put_at_threshold(&mut params, &*activation, case);
    }
    Built { transcoder, activation, strategy, params, batch }
}

/// With no encoder weights every pre-activation is the bias, which is set to the very threshold.
fn put_at_threshold(params: &mut Parameters, activation: &dyn SparsityActivation, case: &Case) {
    for layer in 0..case.dims.layers {
        let own: Vec<Tensor> =
            activation.parameters().iter().map(|own| params.get(&format!("{}_{layer}", own.name)).expect("named").copy()).collect();
        let theta =
            activation.thresholds(&own).expect("thresholds").unwrap_or_else(|| Tensor::zeros([case.dims.d_features as i64], DOUBLE));
        params.set(&format!("b_enc_{layer}"), theta).expect("same shape");
        params
            .set(&format!("W_enc_{layer}"), Tensor::zeros([case.dims.d_features as i64, case.dims.d_model as i64], DOUBLE))
            .expect("same shape");
    }
}

/// The loss written out densely over tensors that autograd follows. Where the threshold has a stand-in gradient, a term that
/// is zero in value carries it.
fn autograd(case: &Case, built: &Built) -> ([f64; 3], Vec<Tensor>) {
    let specs = built.params.specs();
    let leaves: Vec<Tensor> = built.params.values().iter().map(|value| value.copy().set_requires_grad(true)).collect();
    let leaf = |name: &str, layer: usize| &leaves[specs.iter().position(|spec| spec.name == format!("{name}_{layer}")).expect("named")];
    let layers = case.dims.layers;
    let mut outputs: Vec<Tensor> = (0..layers).map(|t| leaf("b_dec", t).unsqueeze(0).expand([case.rows, -1], false)).collect();
    let (mut sparsity, mut preact) = (Tensor::zeros([], DOUBLE), Tensor::zeros([], DOUBLE));
    for s in 0..layers {
        let theta = match (case.activation.name.as_str(), case.log) {
            ("relu", _) => Tensor::zeros([case.dims.d_features as i64], DOUBLE),
            (_, true) => leaf("log_threshold", s).exp(),
            (_, false) => leaf("threshold", s).shallow_clone(),
        };
        let h = built.batch.inputs.select(1, s as i64).matmul(&leaf("W_enc", s).tr()) + leaf("b_enc", s);
        let active = h.detach().gt_tensor(&theta.detach());
        let near = (h.detach() - theta.detach()).abs().lt(case.bandwidth / 2.0);
        let stand_in = near * (theta.detach() / case.bandwidth) * (theta.detach() - &theta);
        let acts = &h * active + stand_in;
        for (k, output) in outputs[s..].iter_mut().enumerate().take(leaf("W_dec", s).size()[1] as usize) {
            *output = &*output + acts.matmul(&leaf("W_dec", s).select(1, k as i64));
        }
        let norms = leaf("W_dec", s).square().sum_dim_intlist([1, 2].as_slice(), false, None::<Kind>).sqrt();
        sparsity += (acts * &norms * case.penalty.tanh_scale).tanh().sum(None::<Kind>) * (case.penalty.lambda / case.rows as f64);
        preact += ((theta - h).relu() * norms).sum(None::<Kind>) * (case.penalty.mu / case.rows as f64);
    }
    let error = Tensor::stack(&outputs, 1) - &built.batch.targets;
    let mse = error.square().sum(None::<Kind>) / case.rows as f64;
    (&mse + &sparsity + &preact).backward();
    let grads = leaves.iter().map(|leaf| if leaf.grad().defined() { leaf.grad() } else { leaf.zeros_like() }).collect();
    ([mse, sparsity, preact].map(|term| term.double_value(&[])), grads)
}

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-10 * (1.0 + want.abs())
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
        built.transcoder.save(folder.path(), &built.params, &*built.activation).expect("saves");
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
            let all: Vec<Tensor> = (0..case.dims.layers).map(|t| built.transcoder.decode(params, &acts, t).expect("decodes")).collect();
            Tensor::stack(&all, 1)
        };
        let apart = (reconstruct(&params) - reconstruct(&built.params)).abs().max().double_value(&[]);
        prop_assert!(apart <= tolerance, "{apart} apart");
    }

    #[test]
    fn folded_parameters_take_and_give_raw_activations(case in cases()) {
        let built = build(&case);
        let layers = case.dims.layers;
        let scales = |index| noise(&[layers as i64], index).abs() + 0.5;
        let (input_scales, target_scales) = (scales(case.seed ^ 2), scales(case.seed ^ 3));
        let list = |scales: &Tensor| Vec::<f64>::try_from(scales).expect("one axis");
        let mut folded = built.params.copy();
        built.transcoder.fold(&mut folded, &list(&input_scales), &list(&target_scales)).expect("folds");
        let raw = &built.batch.inputs / input_scales.view([1, -1, 1]);
        for s in 0..layers {
            // A pre-activation that stands at the very threshold may round to either side.
            if matches!(case.regime, Regime::AtThreshold) { continue; }
            let acts = |params, inputs: &Tensor| (0..=s)
                .map(|s| built.transcoder.encode(params, &*built.activation, s, &inputs.select(1, s as i64)).expect("encodes"))
                .collect::<Vec<_>>();
            let normal = built.transcoder.decode(&built.params, &acts(&built.params, &built.batch.inputs), s).expect("decodes");
            let of_raw = built.transcoder.decode(&folded, &acts(&folded, &raw), s).expect("decodes");
            let apart = (of_raw * target_scales.double_value(&[s as i64]) - normal).abs().max().double_value(&[]);
            prop_assert!(apart < 1e-10, "{apart} apart");
        }
    }

    #[test]
    fn calibrated_features_fire_at_the_chosen_rate(seed: u64, rows in 2_i64..60, rate in 0.05..0.95) {
        let dims = Dims { layers: 2, d_model: 6, d_features: 9 };
        let case = Case {
            transcoder: "clt", activation: Spec::named("jumprelu"), bandwidth: 1.0, log: true, dims, rows, regime: Regime::Mixed,
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
    assert!(built.transcoder.decode(&built.params, &[noise(&[4, 9], 0)], 1).is_err());
    assert!(built.transcoder.calibrate(&mut built.params, &*built.activation, &noise(&[4, 2, 6], 0), 1.0).is_err());
}

#[test]
fn every_transcoder_conforms() {
    let registry = registry();
    for transcoder in ["clt", "plt"] {
        for activation in [
            Spec::named("relu"),
            Spec::named("jumprelu"),
            Spec::named("topk"),
            Spec::named("topk").with("k", 3),
            Spec::named("topk").with("k", 3).with("positive", false),
            Spec::named("batchtopk").with("k", 3),
        ] {
            let mut transcoder = registry.build::<dyn Transcoder>(&Spec::named(transcoder)).expect("builds");
            let activation = registry.build::<dyn SparsityActivation>(&activation).expect("builds");
            let scratch = tempfile::tempdir().expect("a folder");
            circuitlab_core::testing::transcoder::conforms(&mut *transcoder, &*activation, scratch.path());
        }
    }
}
