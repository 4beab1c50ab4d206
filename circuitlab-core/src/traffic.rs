//! What ranks have sent to each other.

use crate::parallel::MeshAxis;

/// A kind of operation of all ranks of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// The tensors of all are added up, and each rank has the sum.
    Sum,
    /// Each rank gets the tensors of all.
    Gather,
    /// The tensors of all are added up, and each rank gets its share of the sum.
    Scatter,
}

/// What one rank has sent along an axis in one kind of operation, since it met the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// The axis.
    pub axis: MeshAxis,
    /// The operation.
    pub collective: Collective,
    /// How often.
    pub calls: u64,
    /// Bytes of tensors; what goes around them is not counted.
    pub bytes: u64,
}
