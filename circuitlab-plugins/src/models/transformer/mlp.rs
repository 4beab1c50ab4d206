//! The MLP of a block.

use tch::Tensor;

use super::description::Activation;
use super::weights::Linear;

/// `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) activation: Activation,
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Mlp {
    /// # Shapes
    /// `x: [batch, position, d_model]`, and the same back.
    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        let up = self.up.apply(x);
        let hidden = match &self.gate {
            Some(gate) => self.activation.apply(&gate.apply(x)) * up,
            None => self.activation.apply(&up),
        };
        self.down.apply(&hidden)
    }
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::GeluExact => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Relu => x.relu(),
        }
    }
}
