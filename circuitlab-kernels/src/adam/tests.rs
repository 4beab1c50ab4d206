use circuitlab_core::random::Stream;
use half::bf16;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::{NEVER, Rows, Step, settle, step};
use crate::real::Real;
use crate::rows::squares_of_rows;

/// A parameter with all that Adam keeps.
#[derive(Debug, Clone, PartialEq)]
struct State<T> {
    width: usize,
    value: Vec<T>,
    first: Vec<T>,
    second: Vec<T>,
    missed: Vec<u32>,
}

impl<T: Real> State<T> {
    fn new(rows: usize, width: usize, seed: u64) -> Self {
        let zeros = vec![T::default(); rows * width];
        Self { width, value: numbers(rows * width, seed, "value"), first: zeros.clone(), second: zeros, missed: vec![NEVER; rows] }
    }

    fn step(&mut self, by: &Step, gradient: &[T], defers: bool) {
        let Self { width, value, first, second, missed } = self;
        let missed = defers.then_some(&mut missed[..]);
        let mut squares = squares_of_rows::<T, T>(value, *width).expect("threads");
        step(by, Rows { width: *width, value, rounded: None, first, second, gradient, missed, squares: Some(&mut squares) }).expect("fits");
        assert_eq!(squares, squares_of_rows::<T, T>(value, *width).expect("threads"), "left as they are found anew, bit for bit");
    }

    fn settled(mut self, by: &Step) -> Self {
        settle(by.beta2, self.width, &mut self.first, &mut self.second, &mut self.missed).expect("fits");
        self
    }
}

fn numbers<T: Real>(count: usize, seed: u64, name: &str) -> Vec<T> {
    let mut stream = Stream::new(seed, name, 0);
    (0..count).map(|_| T::of(2.0 * stream.uniform() - 1.0)).collect()
}

/// A gradient of which some rows are zero.
fn gradient<T: Real>(state: &State<T>, seed: u64, at: u64, silent: f64) -> Vec<T> {
    let mut gradient = numbers(state.value.len(), seed, &format!("gradient {at}"));
    let mut stream = Stream::new(seed, "silent", at);
    for row in gradient.chunks_mut(state.width) {
        if stream.uniform() < silent {
            row.fill(T::default());
        }
    }
    gradient
}

/// The same step by libtorch's operations, one after the other.
fn plain(by: &Step, [value, first, second]: &mut [Tensor; 3], gradient: &Tensor) {
    let gradient = gradient * by.scale;
    let _ = first.lerp_(&gradient, 1.0 - by.beta1);
    let _ = second.g_mul_scalar_(by.beta2).addcmul_(&(&gradient * (1.0 - by.beta2)), &gradient);
    let mut root = second.sqrt();
    let _ = root.g_div_scalar_(by.root).g_add_scalar_(by.epsilon).g_mul_scalar_(-1.0 / by.rate);
    let _ = value.addcdiv_(first, &root);
}

fn at(t: u64, beta1: f64, scale: f64) -> Step {
    Step { scale, ..Step::new(t, 1e-3, beta1, 0.999, 1e-8) }
}

/// The largest difference of two tensors, in the size of the largest number.
fn apart<T: Real>(got: &[T], want: &Tensor) -> f64 {
    let got = Tensor::from_slice(&got.iter().map(|number| (*number).wide()).collect::<Vec<f64>>());
    let want = want.to_kind(Kind::Double).flatten(0, -1);
    (got - &want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]).max(1e-300)
}

fn agrees_with_libtorch<T: Real>(rows: usize, width: usize, beta1: f64, scale: f64, seed: u64, within: f64) {
    let mut state = State::<T>::new(rows, width, seed);
    let tensor = |numbers: &[T]| {
        let double: Vec<f64> = numbers.iter().map(|number| (*number).wide()).collect();
        Tensor::from_slice(&double).to_kind(T::KIND).to_device(Device::Cpu)
    };
    let mut want = [tensor(&state.value), tensor(&state.first), tensor(&state.second)];
    for t in 1..=5 {
        let gradient = gradient(&state, seed, t, 0.3);
        state.step(&at(t, beta1, scale), &gradient, true);
        plain(&at(t, beta1, scale), &mut want, &tensor(&gradient));
    }
    let state = state.settled(&at(5, beta1, scale));
    for (got, want) in [&state.value, &state.first, &state.second].into_iter().zip(&want) {
        assert!(apart(got, want) <= within, "{rows} x {width}: {} apart", apart(got, want));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_pass_agrees_with_libtorch(
        rows in 1_usize..70, width in 1_usize..90, beta1 in prop::sample::select(vec![0.0, 0.5, 0.9]), scale in 0.1_f64..1.0, seed: u64,
    ) {
        agrees_with_libtorch::<f64>(rows, width, beta1, scale, seed, 1e-14);
        // A few units in the last place, of five steps.
        agrees_with_libtorch::<f32>(rows, width, beta1, scale, seed, 1e-6);
    }

    #[test]
    fn rows_that_are_passed_over_end_where_they_would_have(
        rows in 1_usize..40, width in 1_usize..90, beta1 in prop::sample::select(vec![0.0, 0.9]), silent in 0.0_f64..1.0, seed: u64,
    ) {
        fn same<T: Real>(rows: usize, width: usize, beta1: f64, silent: f64, seed: u64) {
            let mut passing = State::<T>::new(rows, width, seed);
            let mut plain = passing.clone();
            for t in 1..=20 {
                let gradient = gradient(&plain, seed, t, silent);
                plain.step(&at(t, beta1, 1.0), &gradient, false);
                passing.step(&at(t, beta1, 1.0), &gradient, true);
                // Parameters are right at every step, to the bit; moments when they are settled.
                assert!(passing.value == plain.value);
            }
            let settled = passing.settled(&at(20, beta1, 1.0));
            assert!(settled.first == plain.first && settled.second == plain.second);
        }
        same::<f32>(rows, width, beta1, silent, seed);
        same::<f64>(rows, width, beta1, silent, seed);
    }

    #[test]
    fn the_result_does_not_depend_on_threads(rows in 1_usize..300, width in 1_usize..700, seed: u64) {
        let run = |threads| {
            tch::set_num_threads(threads);
            let mut state = State::<f32>::new(rows, width, seed);
            for t in 1..=2 {
                let gradient = gradient(&state, seed, t, 0.2);
                state.step(&at(t, 0.9, 0.7), &gradient, true);
            }
            state
        };
        prop_assert!(run(1) == run(3));
    }
}

#[test]
fn a_row_is_not_touched_before_its_first_gradient() {
    let mut state = State::<f32>::new(3, 5, 1);
    let mut gradient = vec![0.0; 15];
    gradient[7] = 1.0;
    state.step(&at(1, 0.9, 1.0), &gradient, true);
    assert_eq!(state.missed, [NEVER, 0, NEVER]);
    gradient[7] = 0.0;
    state.step(&at(2, 0.9, 1.0), &gradient, true);
    assert_eq!(state.missed, [NEVER, 0, NEVER], "with a first moment a row goes on");
    state.step(&at(3, 0.0, 1.0), &gradient, true);
    state.step(&at(4, 0.0, 1.0), &gradient, true);
    assert_eq!(state.missed, [NEVER, 2, NEVER]);
}

#[test]
fn copies_in_16_bits_are_the_rounded_values() {
    let mut state = State::<f32>::new(7, 33, 4);
    let mut rounded: Vec<bf16> = state.value.iter().map(|number| bf16::from_f32(*number)).collect();
    let gradient = gradient(&state, 4, 1, 0.3);
    let State { width, value, first, second, missed } = &mut state;
    let rows =
        Rows { width: *width, value, rounded: Some(&mut rounded), first, second, gradient: &gradient, missed: Some(missed), squares: None };
    step(&at(1, 0.9, 1.0), rows).expect("fits");
    assert!(rounded.iter().zip(&state.value).all(|(rounded, value)| *rounded == bf16::from_f32(*value)));
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let (mut value, mut first, mut second) = (vec![0.0_f32; 6], vec![0.0; 6], vec![0.0; 5]);
    let rows = Rows {
        width: 3,
        value: &mut value,
        rounded: None,
        first: &mut first,
        second: &mut second,
        gradient: &[0.0; 6],
        missed: None,
        squares: None,
    };
    assert!(step(&at(1, 0.9, 1.0), rows).is_err());
    assert!(settle(0.9, 0, &mut first, &mut [0.0; 6], &mut [1, 1]).is_err());
}
