//! The backward pass of activations that do not write their own.

use tch::{Kind, Tensor};

use super::{ActivationGradients, BackwardInput, SparsityActivation};
use crate::params::Update;
use crate::{Result, shape};

/// The backward pass by libtorch's autograd: with `g` the gradient to the activations, `n` the decoder norms and `B` the rows of the
/// mean, the gradient of
///
/// ```text
/// sum g a(h) + lambda / B * sum tanh(C a n) + mu / B * sum relu(theta - h) n
/// ```
///
/// to `h`, to the activation's parameters, through `a` and `theta`, and to `n`. What no gradient reaches has zeros. Tracked
/// parameters keep their value; an activation that follows something calls this and puts the new value in.
///
/// It runs where gradients are switched off as well, and leaves no trace on the tensors that it is given.
///
/// # Errors
/// Shapes that do not fit, and operations that cannot be differentiated.
pub fn by_autograd<A: SparsityActivation + ?Sized>(activation: &A, input: &BackwardInput<'_>) -> Result<ActivationGradients> {
    // `with_grad` does not switch back when `activate` panics; this guard does.
    let _as_before = tch::no_grad_guard();
    tch::with_grad(|| differentiate(activation, input))
}

fn differentiate<A: SparsityActivation + ?Sized>(activation: &A, input: &BackwardInput<'_>) -> Result<ActivationGradients> {
    shape::expect("activation backward, pre_acts", input.pre_acts, &[("rows", -1), ("d_features", -1)])?;
    let (rows, features) = (input.pre_acts.size()[0], input.pre_acts.size()[1]);
    shape::expect("activation backward, grad_acts", &input.grad_acts, &[("rows", rows), ("d_features", features)])?;
    shape::expect("activation backward, decoder_norms", input.decoder_norms, &[("d_features", features)])?;
    let tracked: Vec<bool> = activation.parameters().iter().map(|own| own.update == Update::Tracked).collect();
    let follows = |place: usize| tracked.get(place).copied().unwrap_or(false);

    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
    let (pre_acts, norms) = (leaf(input.pre_acts), leaf(input.decoder_norms));
    let own = |(place, value): (usize, &Tensor)| if follows(place) { value.detach() } else { leaf(value) };
    let params: Vec<Tensor> = input.params.iter().enumerate().map(own).collect();

    let acts = activation.activate(&pre_acts, &params)?.acts;
    let weights = input.penalty;
    let slope = acts.f_mul(&norms)? * weights.tanh_scale;
    let sparsity = slope.tanh().sum(None::<Kind>) * (weights.lambda / input.mean_rows as f64);
    let gap = match activation.thresholds(&params)? {
        Some(theta) => theta.f_sub(&pre_acts)?,
        None => pre_acts.neg(),
    };
    let preact = gap.relu().f_mul(&norms)?.sum(None::<Kind>) * (weights.mu / input.mean_rows as f64);
    let objective = acts.f_mul(&input.grad_acts)?.sum(None::<Kind>) + &sparsity + &preact;

    let trained = params.iter().enumerate().filter(|(place, _)| !follows(*place)).map(|(_, leaf)| leaf);
    let leaves: Vec<&Tensor> = [&pre_acts, &norms].into_iter().chain(trained).collect();
    let found = Tensor::f_run_backward(&[&objective], &leaves, false, false)?;
    // libtorch leaves the gradient of a leaf undefined that the objective does not depend on.
    let mut found = found.into_iter().zip(leaves).map(|(grad, leaf)| if grad.defined() { grad } else { leaf.detach().zeros_like() });
    let mut next = || found.next().unwrap_or_else(|| Tensor::zeros([0], (Kind::Float, input.pre_acts.device())));
    let (grad_pre_acts, grad_norms) = (next(), next());
    let share = rows as f64 / input.mean_rows.max(1) as f64;
    let grad_params = params.iter().enumerate().map(|(place, value)| if follows(place) { value * share } else { next() }).collect();
    Ok(ActivationGradients {
        sparsity: sparsity.detach(),
        preact: preact.detach(),
        pre_acts: grad_pre_acts,
        params: grad_params,
        decoder_norms: grad_norms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activated, ActivationParameter, Init, PenaltyWeights};

    /// `a = relu(h)`, with a parameter that nothing depends on and one that is followed.
    #[derive(Debug)]
    struct Idle;

    impl SparsityActivation for Idle {
        fn parameters(&self) -> Vec<ActivationParameter> {
            let named = |name, update| ActivationParameter { name, init: Init::Constant(3.0), update };
            vec![named("idle", Update::Gradient), named("followed", Update::Tracked)]
        }

        fn activate(&self, pre_acts: &Tensor, _: &[Tensor]) -> Result<Activated> {
            assert!(pre_acts.numel() != 4, "four numbers are a panic");
            Ok(Activated { acts: pre_acts.relu(), active: pre_acts.gt(0.0) })
        }

        fn thresholds(&self, _: &[Tensor]) -> Result<Option<Tensor>> {
            Ok(None)
        }

        fn params_with_thresholds(&self, _: Option<&Tensor>) -> Result<Vec<Tensor>> {
            Ok(Vec::new())
        }
    }

    fn backward(numbers: &[f64]) -> ActivationGradients {
        let pre_acts = Tensor::from_slice(numbers).view([-1, 2]);
        let params = [Tensor::from_slice(&[1.0, 1.0]), Tensor::from_slice(&[5.0, 6.0])];
        let norms = Tensor::from_slice(&[1.0, 2.0]);
        let activated = Activated { acts: pre_acts.relu(), active: pre_acts.gt(0.0) };
        let back = Idle.backward(BackwardInput {
            pre_acts: &pre_acts,
            params: &params,
            activated: &activated,
            grad_acts: pre_acts.ones_like(),
            decoder_norms: &norms,
            penalty: PenaltyWeights { lambda: 0.0, mu: 1.0, tanh_scale: 1.0 },
            mean_rows: 2,
        });
        assert!(!pre_acts.requires_grad() && !norms.requires_grad() && params.iter().all(|value| !value.requires_grad()));
        back.expect("it goes backward")
    }

    fn list(tensor: &Tensor) -> Vec<f64> {
        tensor.view([-1]).try_into().expect("one axis")
    }

    #[test]
    fn works_where_gradients_are_off_and_leaves_them_off() {
        tch::no_grad(|| {
            let back = backward(&[1.0, -1.0]);
            assert_eq!(list(&back.pre_acts), [1.0, -1.0], "the pull of the activation, and mu n / B");
            assert_eq!(list(&back.decoder_norms), [0.0, 0.5]);
            assert_eq!(list(&back.params[0]), [0.0, 0.0], "no gradient reaches it");
            assert_eq!(list(&back.params[1]), [2.5, 3.0], "one of two rows: half of its value");
            assert!(!back.preact.requires_grad());
            std::panic::catch_unwind(|| backward(&[0.0; 4])).expect_err("four numbers are a panic");
            assert!(!Tensor::from_slice(&[1.0]).set_requires_grad(true).exp().requires_grad(), "gradients are off again");
        });
    }
}
