//! Sparsity activations.

mod batchtopk;
mod jumprelu;
mod relu;
mod threshold;
mod topk;

pub use batchtopk::{BatchTopK, BatchTopKConfig};
pub use jumprelu::{JumpReLU, JumpReLUConfig, Parameterisation};
pub use relu::{ReLU, ReLUConfig};
pub use topk::{TopK, TopKConfig};
