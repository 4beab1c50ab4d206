//! The forms of a step against each other, over a run: all are exact, so they differ by rounding alone.

use circuitlab::train::{Adam, OptimiserConfig, clip_scale, global_norm};
use circuitlab_core::random::Stream;
use circuitlab_core::{
    Batch, Dims, ParallelismStrategy, Parameters, PenaltyWeights, Registry, SparsityActivation, Spec, StepContext, Transcoder,
};
use tch::{Device, Kind, Tensor};

const DIMS: Dims = Dims { layers: 3, d_model: 24, d_features: 150 };
const ROWS: i64 = 64;
const STEPS: u64 = 200;

fn noise(shape: &[i64], index: u64) -> Tensor {
    let mut stream = Stream::new(41, "exactness of a run", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| (0..4).map(|_| stream.uniform() - 0.5).sum::<f64>() * 1.7).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// The loss terms and the mean active features of every step.
type Curve = Vec<[f64; 4]>;

/// A run of a form, with its rows in the order given or turned round, which changes the order of summation alone.
fn run(step: &str, kind: Kind, turned: bool) -> Curve {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    let mut transcoder = registry.build::<dyn Transcoder>(&Spec::named("clt").with("step", step)).expect("builds");
    let activation = registry.build::<dyn SparsityActivation>(&Spec::named("jumprelu").with("threshold", 0.1)).expect("builds");
    let strategy = registry.build::<dyn ParallelismStrategy>(&Spec::named("single")).expect("builds");
    let specs = transcoder.parameters(DIMS, &*activation).expect("small sizes");
    let mut params = Parameters::init(specs, 3, kind, Device::Cpu).expect("fits");
    let shape = [ROWS, DIMS.layers as i64, DIMS.d_model as i64];
    transcoder.calibrate(&mut params, &*activation, &noise(&shape, 9999).to_kind(kind), 0.1).expect("calibrates");
    let mut adam = Adam::new(OptimiserConfig::default(), &params);
    let mixing = noise(&[shape[2], shape[2]], 9998);
    (0..STEPS)
        .map(|index| {
            let inputs = noise(&shape, index);
            let targets = inputs.matmul(&mixing).tanh();
            let ordered = |rows: Tensor| if turned { rows.flip([0]) } else { rows }.to_kind(kind);
            let batch = Batch { inputs: ordered(inputs), targets: ordered(targets) };
            let penalty = PenaltyWeights { lambda: 0.02 * index as f64 / STEPS as f64, mu: 1e-3, tanh_scale: 4.0 };
            let context = StepContext::whole(&*activation, &*strategy, penalty, ROWS);
            let output = transcoder.step(&params, &batch, &context).expect("steps");
            let norm = global_norm(&output.gradients, output.gradient_squares.as_deref(), &params, &*strategy).expect("one rank");
            adam.step(&mut params, &output.gradients, 2e-3, clip_scale(norm, 1.0)).expect("steps");
            let value = |term: &Tensor| term.double_value(&[]);
            let active = output.active_rows.sum(Kind::Double).double_value(&[]) / ROWS as f64;
            [value(&output.mse), value(&output.sparsity), value(&output.preact), active]
        })
        .collect()
}

/// The largest relative difference of any term, step by step.
fn apart(one: &Curve, other: &Curve) -> Vec<f64> {
    let relative = |(one, other): (&f64, &f64)| (one - other).abs() / other.abs().max(f64::MIN_POSITIVE);
    one.iter().zip(other).map(|(one, other)| one.iter().zip(other).map(relative).fold(0.0, f64::max)).collect()
}

fn largest(curve: &[f64]) -> f64 {
    curve.iter().copied().fold(0.0, f64::max)
}

#[test]
fn two_hundred_steps_in_64_bits_are_those_of_the_dense_form() {
    let dense = run("dense", Kind::Double, false);
    assert!(dense[150][3] > 1.0 && dense[199][0] < 0.9 * dense[0][0], "features fire and the run learns: {:?}", dense[199]);
    for form in ["kernels", "operations"] {
        let apart = largest(&apart(&run(form, Kind::Double, false), &dense));
        assert!(apart < 1e-7, "{form}: {apart} apart");
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "the curves are what one looks at when it fails")]
fn in_32_bits_forms_are_as_near_as_orders_of_summation() {
    let dense = run("dense", Kind::Float, false);
    let exact = run("dense", Kind::Double, false);
    let turned = apart(&run("dense", Kind::Float, true), &dense);
    let of_dense = apart(&dense, &exact);
    for form in ["kernels", "operations"] {
        let curve = run(form, Kind::Float, false);
        let (between, of_form) = (apart(&curve, &dense), apart(&curve, &exact));
        for step in (0..STEPS as usize).step_by(20).chain([STEPS as usize - 1]) {
            println!(
                "{form} step {step}: to dense {:.1e}, dense to itself turned {:.1e}; to 64 bits {:.1e}, dense {:.1e}",
                between[step], turned[step], of_form[step], of_dense[step]
            );
        }
        // A feature that rounds to the other side of its threshold moves a sum by as much as its activation, in any of the runs.
        let bound = largest(&turned).max(largest(&of_dense));
        assert!(largest(&between) <= 2.0 * bound, "{form}: {} apart, orders of summation {bound}", largest(&between));
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let before = tch::get_num_threads();
    let runs: Vec<Curve> = [1, 2, 3]
        .into_iter()
        .map(|threads| {
            tch::set_num_threads(threads);
            run("kernels", Kind::Float, false)
        })
        .collect();
    tch::set_num_threads(before);
    let bits = |run: &Curve| run.iter().map(|terms| terms.map(f64::to_bits)).collect::<Vec<_>>();
    assert!(bits(&runs[0]) == bits(&runs[1]) && bits(&runs[1]) == bits(&runs[2]));
}
