//! Adam, and clipping by the global norm.
//!
//! On CPUs a step is one pass over parameter, moments and gradient, by the loops of `circuitlab-kernels`; the factor of clipping is
//! multiplied in as gradients are read. On other devices it is a few operations of libtorch.

mod adam;
mod eight;
mod kept;
mod norm;

pub use adam::Adam;
pub use norm::{clip_scale, global_norm};
