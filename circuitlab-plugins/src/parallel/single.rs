//! `single`: one process owns everything.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Construct, Mesh, ParallelismStrategy, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

register!(strategy "single" => SingleConfig, "one process owns all rows and all features");

/// No settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SingleConfig {}

/// The mesh of one rank.
#[derive(Debug, Clone, Copy)]
pub struct Single;

impl Construct for SingleConfig {
    type Output = Single;

    fn construct(&self) -> Result<Single> {
        Ok(Single)
    }
}

impl ParallelismStrategy for Single {
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
