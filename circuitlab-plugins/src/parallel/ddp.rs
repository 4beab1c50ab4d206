//! `ddp`: every rank owns all features and reads rows of its own; gradients are added up.

use circuitlab_c10d::Environment;
use circuitlab_core::{Construct, Result};

use super::distributed::{Distributed, Waiting, settings};

register!(strategy "ddp" => DdpConfig, "data parallelism: ranks read different rows and add their gradients up");

settings! {
    /// Settings of `ddp`; the launcher's environment says how many ranks there are.
    DdpConfig {}
}

impl Construct for DdpConfig {
    type Output = Distributed;

    /// Returns when all ranks are there.
    fn construct(&self) -> Result<Distributed> {
        let environment = Environment::read()?;
        Distributed::join("ddp", &environment, [environment.ranks, 1], false, &self.waiting())
    }
}
