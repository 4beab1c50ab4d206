//! Sparsity activations.

mod jumprelu;
mod relu;
mod threshold;

pub use jumprelu::{JumpReLU, JumpReLUConfig, Parameterisation};
pub use relu::{ReLU, ReLUConfig};
