//! Guarded parallelism strategies.

use tch::Tensor;

use super::guarded::Guarded;
use crate::parallel::MeshAxis;
use crate::{Mesh, ParallelismStrategy, Result};

/// Guards a strategy.
///
/// # Errors
/// A panic while it describes its mesh.
pub fn strategy<T: ParallelismStrategy + 'static>(what: &'static str, made: T) -> Result<Box<dyn ParallelismStrategy>> {
    Ok(Box::new(Guarded::new(what, made).ask(T::mesh)?))
}

impl<T: ParallelismStrategy> ParallelismStrategy for Guarded<T, Mesh> {
    fn mesh(&self) -> Mesh {
        self.facts
    }

    fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> Result<()> {
        self.call(|strategy| strategy.sum(axis, tensor))
    }

    fn reduce_gradients(&self, gradients: &mut [Tensor]) -> Result<()> {
        self.call(|strategy| strategy.reduce_gradients(gradients))
    }

    fn gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Tensor> {
        self.call(|strategy| strategy.gather(axis, own, rows))
    }

    fn barrier(&self) -> Result<()> {
        self.call(T::barrier)
    }
}
