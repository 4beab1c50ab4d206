//! `fsdp`: every rank reads rows of its own, and keeps a share of the rows of each matrix.

use circuitlab_c10d::Environment;
use circuitlab_core::{Construct, Result};

use super::distributed::{Distributed, Waiting, settings};

register!(strategy "fsdp" => FsdpConfig, "fully sharded data parallelism: as ddp, and each matrix is shared out, gathered for as long as a step needs it");

settings! {
    /// Settings of `fsdp`; the launcher's environment says how many ranks there are.
    FsdpConfig {}
}

impl Construct for FsdpConfig {
    type Output = Distributed;

    /// Returns when all ranks are there.
    fn construct(&self) -> Result<Distributed> {
        let environment = Environment::read()?;
        Distributed::join("fsdp", &environment, [environment.ranks, 1], true, &self.waiting())
    }
}
