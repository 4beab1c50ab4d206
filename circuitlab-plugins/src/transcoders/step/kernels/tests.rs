//! The two forms of each layer against each other: which is taken hangs on measured times, and must not be seen in any result.

use circuitlab_core::{Dims, Registry, StepContext, StepOutput, ThresholdForm};
use proptest::prelude::*;
use tch::{Kind, Tensor};

use super::spread::Costs;
use super::{Workspace, step};
use crate::transcoders::dictionary::{Layer, layers};

use crate::transcoders::step::cases::{Built, Case, build, cases};

fn registry() -> Registry {
    crate::link();
    Registry::linked().expect("no name twice")
}

/// A step in which every layer takes the given form.
fn forced(built: &Built, case: &Case, costs: Costs) -> StepOutput {
    let forms: Vec<ThresholdForm> = (0..layers(&built.params))
        .map(|layer| {
            let own = Layer::of(&built.params, layer).expect("a layer").own;
            built.activation.threshold_form(&own).expect("a form").expect("a threshold")
        })
        .collect();
    let context = StepContext::whole(&*built.activation, &*built.strategy, case.penalty, case.rows);
    let rows = case.rows as usize;
    let reach = if case.transcoder == "clt" { |layers, source| source..layers } else { |_, source| source..source + 1 };
    let mut work = Workspace::<f64>::new(case.dims, rows, &built.params, &context).expect("memory");
    work.costs = costs;
    step::<f64, f64>(&built.params, reach, &built.batch, &context, &forms, &mut Some(work)).expect("steps")
}

fn same_bits(case: &Case) {
    let built = build(case, &registry());
    let (sparse, dense) = (forced(&built, case, Costs::ALWAYS_SPARSE), forced(&built, case, Costs::ALWAYS_DENSE));
    let value = |term: &Tensor| term.double_value(&[]).to_bits();
    assert_eq!([&sparse.mse, &sparse.sparsity, &sparse.preact].map(value), [&dense.mse, &dense.sparsity, &dense.preact].map(value));
    for ((spec, sparse), dense) in built.params.specs().iter().zip(&sparse.gradients).zip(&dense.gradients) {
        assert_eq!(sparse, dense, "{}", spec.name);
    }
    assert_eq!(sparse.gradient_squares, dense.gradient_squares);
    assert!(sparse.gradients.iter().any(|gradient| gradient.abs().sum(Kind::Double).double_value(&[]) > 0.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn dense_and_sparse_layers_have_the_same_bits(
        case in cases(),
        (layers, d_model, d_features, rows) in (1_usize..4, 1_usize..150, 1_usize..300, 1_i64..70),
    ) {
        same_bits(&case);
        same_bits(&Case { dims: Dims { layers, d_model, d_features }, rows, ..case });
    }
}

#[test]
fn measured_costs_prefer_the_dense_form_where_all_are_active_and_the_sparse_one_where_few_are() {
    let costs = Costs::measure::<f32>();
    assert!(!costs.prefers_dense(0, 1000));
    assert!(Costs::ALWAYS_DENSE.prefers_dense(1, 1000) && !Costs::ALWAYS_SPARSE.prefers_dense(1000, 1000));
}
