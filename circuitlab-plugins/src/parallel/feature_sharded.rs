//! `feature-sharded`: every rank reads all rows and owns features of its own; reconstructions are added up.

use circuitlab_c10d::Environment;
use circuitlab_core::{Construct, Result};

use super::distributed::{Distributed, Waiting, settings};

register!(strategy "feature-sharded" => FeatureShardedConfig, "ranks own different features of every layer and add their reconstructions up");

settings! {
    /// Settings of `feature-sharded`; the launcher's environment says how many ranks there are.
    FeatureShardedConfig {}
}

impl Construct for FeatureShardedConfig {
    type Output = Distributed;

    /// Returns when all ranks are there.
    fn construct(&self) -> Result<Distributed> {
        let environment = Environment::read()?;
        Distributed::join("feature-sharded", &environment, [1, environment.ranks], false, &self.waiting())
    }
}
