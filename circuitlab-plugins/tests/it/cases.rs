//! Batches, parameters and settings of all kinds, and the loss written out for autograd: what steps are held against. Unit tests of
//! the crate, whose steps are not public, take this file in too.

use circuitlab_core::{
    Batch, Dims, ParallelismStrategy, Parameters, PenaltyWeights, Registry, SparsityActivation, Spec, Transcoder, random::Stream,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

pub(crate) const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

pub(crate) fn noise(shape: &[i64], index: u64) -> Tensor {
    let mut stream = Stream::new(5, "transcoder tests", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// Where the thresholds lie against the pre-activations.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Regime {
    Mixed,
    AllSilent,
    AllActive,
    AtThreshold,
}

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) transcoder: &'static str,
    pub(crate) skip: bool,
    pub(crate) activation: Spec,
    pub(crate) bandwidth: f64,
    pub(crate) log: bool,
    pub(crate) dims: Dims,
    pub(crate) rows: i64,
    pub(crate) regime: Regime,
    pub(crate) penalty: PenaltyWeights,
    pub(crate) seed: u64,
}

pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1_usize..5, 1_usize..9, 1_usize..14, 1_i64..12);
    let regime = prop_oneof![
        4 => Just(Regime::Mixed),
        1 => Just(Regime::AllSilent),
        1 => Just(Regime::AllActive),
        1 => Just(Regime::AtThreshold)
    ];
    let weights = (0.0..1.0, 0.0..0.1, 0.5..6.0).prop_map(|(lambda, mu, tanh_scale)| PenaltyWeights { lambda, mu, tanh_scale });
    let kind = (prop_oneof![Just("clt"), Just("plt")], 0_usize..3, 0.05..2.0, any::<bool>());
    (sizes, regime, weights, kind, any::<u64>()).prop_map(
        |((layers, d_model, d_features, rows), regime, penalty, (transcoder, which, bandwidth, skip), seed)| {
            let activation = match which {
                0 => Spec::named("relu"),
                1 => Spec::named("jumprelu").with("threshold", 0.3).with("bandwidth", bandwidth),
                _ => Spec::named("jumprelu").with("threshold", 0.3).with("bandwidth", bandwidth).with("parameterisation", "direct"),
            };
            Case {
                transcoder,
                skip,
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

impl Case {
    pub(crate) fn spec(&self) -> Spec {
        Spec::named(self.transcoder).with("skip", self.skip)
    }
}

pub(crate) struct Built {
    pub(crate) transcoder: Box<dyn Transcoder>,
    pub(crate) activation: Box<dyn SparsityActivation>,
    pub(crate) strategy: Box<dyn ParallelismStrategy>,
    pub(crate) params: Parameters,
    pub(crate) batch: Batch,
}

pub(crate) fn build(case: &Case, registry: &Registry) -> Built {
    let transcoder = registry.build::<dyn Transcoder>(&case.spec()).expect("builds");
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
pub(crate) fn autograd(case: &Case, built: &Built) -> ([f64; 3], Vec<Tensor>) {
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
        if case.skip {
            outputs[s] = &outputs[s] + built.batch.inputs.select(1, s as i64).matmul(&leaf("W_skip", s).tr());
        }
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

pub(crate) fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-10 * (1.0 + want.abs())
}
