//! The transformer made linear at a prompt: patterns and norm denominators of one forward pass, and the adjoint of what is left.

mod adjoint;
mod attention;
mod norm;
mod record;

pub(super) use record::freeze;
