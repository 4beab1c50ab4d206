//! The suite of [`SparsityActivation`].

use tch::{Kind, Tensor};

use crate::{BackwardInput, PenaltyWeights, SparsityActivation};

/// Asserts that an activation keeps its promises, on made-up pre-activations in f64: silent features are zero, the gradients
/// to pre-activations and decoder norms are those of the objective, thresholds survive a round trip, and every tensor has
/// the shape that it should have.
///
/// Gradients are compared with central differences wherever no feature is about to cross its threshold. What goes back to
/// the parameters is not: a jump has no derivative, so each activation chooses its own stand-in.
///
/// # Panics
/// When the activation breaks one of them.
pub fn conforms(activation: &dyn SparsityActivation) {
    let (rows, features) = (7, 5);
    let params: Vec<Tensor> = activation
        .parameters()
        .iter()
        .enumerate()
        .map(|(place, own)| match own.init {
            crate::Init::Constant(value) => noise(&[features], 50 + place as u64) * 0.05 + value,
            crate::Init::Uniform { limit } => noise(&[features], 50 + place as u64) * limit,
        })
        .collect();
    let case = Case {
        activation,
        params,
        pre_acts: noise(&[rows, features], 1),
        pull: noise(&[rows, features], 2),
        norms: noise(&[features], 3).abs() + 0.5,
    };

    let activated = activation.activate(&case.pre_acts, &case.params).expect("it activates");
    assert_eq!(activated.acts.size(), [rows, features], "activations have the shape of the pre-activations");
    assert_eq!(activated.active.kind(), Kind::Bool, "the support is boolean");
    let silent = activated.active.logical_not();
    assert!((&activated.acts * silent).abs().max().double_value(&[]) == 0.0, "a silent feature's activation is zero");

    let back = case.backward();
    assert_eq!(back.pre_acts.size(), [rows, features]);
    assert_eq!(back.params.len(), case.params.len(), "one gradient for each parameter");
    assert!(back.params.iter().all(|grad| grad.size() == [features]));
    let objective = case.objective(&case.pre_acts, &case.norms);
    assert!(objective.is_finite());
    for (row, feature) in (0..rows).flat_map(|row| (0..features).map(move |feature| (row, feature))) {
        case.check_pre_act(&back.pre_acts, row, feature);
    }
    for feature in 0..features {
        case.check_norm(&back.decoder_norms, feature);
    }

    let thresholds = activation.thresholds(&case.params).expect("thresholds");
    let again = activation.params_with_thresholds(thresholds.as_ref()).expect("its own thresholds");
    let same = activation.activate(&case.pre_acts, &again).expect("it activates");
    assert_eq!(same.active, activated.active, "thresholds survive a round trip");
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

const STEP: f64 = 1e-5;
const PENALTY: PenaltyWeights = PenaltyWeights { lambda: 0.7, mu: 0.3, tanh_scale: 2.0 };

impl Case<'_> {
    fn run(&self, pre_acts: &Tensor, norms: &Tensor) -> (Tensor, crate::ActivationGradients) {
        let activated = self.activation.activate(pre_acts, &self.params).expect("it activates");
        let back = self
            .activation
            .backward(BackwardInput {
                pre_acts,
                params: &self.params,
                activated: &activated,
                grad_acts: self.pull.copy(),
                decoder_norms: norms,
                penalty: PENALTY,
                mean_rows: self.pre_acts.size()[0],
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

    fn support(&self, pre_acts: &Tensor) -> Tensor {
        self.activation.activate(pre_acts, &self.params).expect("it activates").active
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
}
