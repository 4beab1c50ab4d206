//! The suite of [`SparsityActivation`].

use tch::{Kind, Tensor};

use crate::sparsity::has_jump_form;
use crate::{Activated, BackwardInput, JumpForm, PenaltyWeights, Scope, SparsityActivation, ThresholdForm, Update};

/// Asserts that an activation keeps its promises, on made-up pre-activations in f64: silent features are zero, the gradients
/// to pre-activations and decoder norms are those of the objective, tracked parameters are shares of a mean, every tensor has the
/// shape that it should have, and what a saved CLT holds is the activation: its thresholds or, where it has one, its jump form.
///
/// Gradients are compared with central differences wherever no feature is about to cross its threshold. What goes back to
/// the parameters is not: a jump has no derivative, so each activation chooses its own stand-in.
///
/// # Panics
/// When the activation breaks one of them.
pub fn conforms(activation: &dyn SparsityActivation) {
    let case = Case::new(activation);
    let activated = case.activate(&case.pre_acts);
    assert_eq!(activated.acts.size(), [ROWS, FEATURES], "activations have the shape of the pre-activations");
    assert_eq!(activated.active.kind(), Kind::Bool, "the support is boolean");
    assert_eq!(activated.active.size(), [ROWS, FEATURES], "so has the support");
    let silent = activated.active.logical_not();
    assert!((&activated.acts * silent).abs().max().double_value(&[]) == 0.0, "a silent feature's activation is zero");

    let back = case.backward();
    assert_eq!(back.pre_acts.size(), [ROWS, FEATURES]);
    assert_eq!(back.params.len(), case.params.len(), "one gradient for each parameter");
    assert!(back.params.iter().all(|grad| grad.size() == [FEATURES]));
    let objective = case.objective(&case.pre_acts, &case.norms);
    assert!(objective.is_finite());
    for (row, feature) in (0..ROWS).flat_map(|row| (0..FEATURES).map(move |feature| (row, feature))) {
        case.check_pre_act(&back.pre_acts, row, feature);
    }
    for feature in 0..FEATURES {
        case.check_norm(&back.decoder_norms, feature);
    }
    case.check_tracked(&back.params);
    match activation.jump_form(&case.params).expect("a form or none") {
        None => case.check_thresholds(),
        Some(form) => case.check_jump_form(&form),
    }
    if let Some(form) = activation.threshold_form(&case.params).expect("a form or none") {
        case.check_threshold_form(&form);
    }
    let form = has_jump_form(activation).expect("a form or none");
    assert_eq!(form, activation.jump_form(&case.params).expect("a form or none").is_some(), "a form depends on no value");
}

fn noise(shape: &[i64], index: u64) -> Tensor {
    let mut stream = crate::random::Stream::new(11, "activation suite", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

struct Case<'a> {
    activation: &'a dyn SparsityActivation,
    params: Vec<Tensor>,
    pre_acts: Tensor,
    pull: Tensor,
    norms: Tensor,
}

const ROWS: i64 = 7;
const FEATURES: i64 = 5;
const STEP: f64 = 1e-5;
const PENALTY: PenaltyWeights = PenaltyWeights { lambda: 0.7, mu: 0.3, tanh_scale: 2.0 };

impl<'a> Case<'a> {
    fn new(activation: &'a dyn SparsityActivation) -> Self {
        let near = |(place, own): (usize, &crate::ActivationParameter)| match own.init {
            crate::Init::Constant(value) => noise(&[FEATURES], 50 + place as u64) * 0.05 + value,
            crate::Init::Uniform { limit } => noise(&[FEATURES], 50 + place as u64) * limit,
        };
        Self {
            activation,
            params: activation.parameters().iter().enumerate().map(near).collect(),
            pre_acts: noise(&[ROWS, FEATURES], 1),
            pull: noise(&[ROWS, FEATURES], 2),
            norms: noise(&[FEATURES], 3).abs() + 0.5,
        }
    }

    fn activate(&self, pre_acts: &Tensor) -> Activated {
        self.activation.activate(pre_acts, &self.params).expect("it activates")
    }

    fn run(&self, pre_acts: &Tensor, norms: &Tensor) -> (Tensor, crate::ActivationGradients) {
        self.run_as_one_of(1, pre_acts, norms)
    }

    /// The step of one of so many ranks.
    fn run_as_one_of(&self, ranks: i64, pre_acts: &Tensor, norms: &Tensor) -> (Tensor, crate::ActivationGradients) {
        let activated = self.activate(pre_acts);
        let back = self
            .activation
            .backward(BackwardInput {
                pre_acts,
                params: &self.params,
                activated: &activated,
                grad_acts: self.pull.copy(),
                decoder_norms: norms,
                penalty: PENALTY,
                mean_rows: ROWS * ranks,
            })
            .expect("it goes backward");
        (activated.acts, back)
    }

    fn backward(&self) -> crate::ActivationGradients {
        self.run(&self.pre_acts, &self.norms).1
    }

    /// The part of the loss that an activation sees: a linear pull on the activations and both penalty terms.
    fn objective(&self, pre_acts: &Tensor, norms: &Tensor) -> f64 {
        let (acts, back) = self.run(pre_acts, norms);
        (acts * &self.pull).sum(Kind::Double).double_value(&[]) + back.sparsity.double_value(&[]) + back.preact.double_value(&[])
    }

    /// Support and gradients written out from the form, which the activation's own must agree with.
    fn check_threshold_form(&self, form: &ThresholdForm) {
        form.check(FEATURES).expect("a number for each feature");
        let (activated, back) = (self.activate(&self.pre_acts), self.backward());
        let theta = form.thresholds.as_ref().map_or_else(|| Tensor::zeros_like(&self.norms), Tensor::shallow_clone);
        let (h, mean) = (&self.pre_acts, ROWS as f64);
        let active = h.gt_tensor(&theta);
        let agrees = |what: &str, got: &Tensor, want: &Tensor| {
            let apart = (got - want).abs().max().double_value(&[]);
            assert!(apart < 1e-9, "the threshold form's {what} is the activation's; {apart} apart");
        };
        agrees("activation", &activated.acts, &(h * &active));
        let tanh = (&activated.acts * &self.norms * PENALTY.tanh_scale).tanh();
        let pull = &self.pull + (1.0 - tanh.square()) * &self.norms * (PENALTY.lambda * PENALTY.tanh_scale / mean);
        let silent = h.lt_tensor(&theta);
        let push = &self.norms * (PENALTY.mu / mean);
        agrees("gradient to the pre-activations", &back.pre_acts, &(&pull * &active - &silent * &push));
        assert_eq!(form.trained.is_some(), !self.params.is_empty(), "its one parameter is trained");
        if let Some(trained) = &form.trained {
            let near = (h - &theta).abs().lt(trained.bandwidth / 2.0);
            let over_rows = |values: Tensor| values.sum_dim_intlist(0, false, Kind::Double);
            let grad = over_rows(silent * push) - over_rows(near * pull) * &theta / trained.bandwidth;
            assert_eq!(back.params.len(), 1, "a trained threshold is the activation's one parameter");
            agrees("gradient to the parameter", &back.params[0], &(grad * &trained.slope));
        }
    }

    fn support(&self, pre_acts: &Tensor) -> Tensor {
        self.activate(pre_acts).active
    }

    fn check_pre_act(&self, grad: &Tensor, row: i64, feature: i64) {
        let moved = |by: f64| {
            let there = self.pre_acts.copy();
            let _ = there.get(row).get(feature).g_add_scalar_(by);
            there
        };
        if self.support(&moved(10.0 * STEP)) != self.support(&moved(-10.0 * STEP)) {
            return; // at a jump there is no derivative to compare with
        }
        let slope = (self.objective(&moved(STEP), &self.norms) - self.objective(&moved(-STEP), &self.norms)) / (2.0 * STEP);
        let got = grad.double_value(&[row, feature]);
        assert!(
            (slope - got).abs() < 1e-6 * (1.0 + slope.abs()),
            "gradient to the pre-activation [{row}, {feature}]: {got}, by differences {slope}"
        );
    }

    fn check_norm(&self, grad: &Tensor, feature: i64) {
        let moved = |by: f64| {
            let there = self.norms.copy();
            let _ = there.get(feature).g_add_scalar_(by);
            there
        };
        let slope = (self.objective(&self.pre_acts, &moved(STEP)) - self.objective(&self.pre_acts, &moved(-STEP))) / (2.0 * STEP);
        let got = grad.double_value(&[feature]);
        assert!(
            (slope - got).abs() < 1e-6 * (1.0 + slope.abs()),
            "gradient to the decoder norm [{feature}]: {got}, by differences {slope}"
        );
    }

    fn check_tracked(&self, whole: &[Tensor]) {
        let half = self.run_as_one_of(2, &self.pre_acts, &self.norms).1.params;
        for ((own, whole), half) in self.activation.parameters().iter().zip(whole).zip(half) {
            if own.update == Update::Tracked {
                let apart = (half * 2.0 - whole).abs().max().double_value(&[]);
                assert!(apart < 1e-12, "two ranks with the same rows add up to the new value of `{}`; {apart} apart", own.name);
            }
        }
    }

    fn check_thresholds(&self) {
        let thresholds = self.activation.thresholds(&self.params).expect("thresholds");
        let again = self.activation.params_with_thresholds(thresholds.as_ref()).expect("its own thresholds");
        let same = self.activation.activate(&self.pre_acts, &again).expect("it activates");
        assert_eq!(same.active, self.activate(&self.pre_acts).active, "thresholds survive a round trip");
    }

    /// A jump form sees one entry at a time. So does an activation of scope [`Scope::Entry`], which it must equal; one that sees the
    /// whole batch must come to agree with it as its tracked parameters settle on that batch, but for features that stand at
    /// the very threshold. For [`Scope::Row`] there is nothing to compare.
    fn check_jump_form(&self, form: &JumpForm) {
        let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        assert!([&form.scale, &form.shift, &form.thresholds].into_iter().all(finite), "a jump form is finite");
        assert!(form.scale.min().double_value(&[]) > 0.0, "its scale is positive");
        let settled;
        let (form, own) = match self.activation.scope() {
            Scope::Row => return form.check(FEATURES).expect("a number for each feature"),
            Scope::Entry => (form, self.activate(&self.pre_acts)),
            Scope::Batch => {
                let params = self.settle();
                settled = self.activation.jump_form(&params).expect("a form").expect("a form depends on no value");
                (&settled, self.activation.activate(&self.pre_acts, &params).expect("it activates"))
            }
        };
        let jumped = form.activate(&self.pre_acts).expect("a number for each feature");
        let at_threshold = (&self.pre_acts * &form.scale + &form.shift - &form.thresholds).abs().lt(1e-9);
        let apart = ((jumped.acts - own.acts).abs() * at_threshold.logical_not()).max().double_value(&[]);
        assert!(apart < 1e-9, "the jump form is the activation; {apart} apart");
    }

    /// The parameters after the same batch over and over.
    fn settle(&self) -> Vec<Tensor> {
        let mut at = Case { params: self.params.iter().map(Tensor::copy).collect(), ..Case::new(self.activation) };
        for _ in 0..1000 {
            let back = at.backward();
            for ((own, value), new) in self.activation.parameters().iter().zip(&mut at.params).zip(back.params) {
                if own.update == Update::Tracked {
                    *value = new;
                }
            }
        }
        at.params
    }
}
