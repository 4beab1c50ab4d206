//! The mesh of one rank, for suites that need a strategy and do not test one.

use tch::Tensor;

use crate::parallel::MeshAxis;
use crate::{Mesh, ParallelismStrategy, Result};

#[derive(Debug)]
pub(super) struct OneRank;

impl ParallelismStrategy for OneRank {
    fn mesh(&self) -> Mesh {
        Mesh::SINGLE
    }

    fn sum(&self, _: MeshAxis, _: &mut Tensor) -> Result<()> {
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}
