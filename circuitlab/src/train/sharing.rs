//! How ranks that train on the same rows come by them.

use std::sync::Arc;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Batch, ParallelismStrategy, Precision};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::config::TrainConfig;
use super::state::placement;
use crate::cache::LoaderOptions;
use crate::{Error, Result};

/// How ranks that own different features, and train on the same rows, come by them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// In parts where the run computes on GPUs, which talk faster than their host decodes, and where activations are made as they are
    /// needed, since two hosts may not make them to the same bits; else each for itself.
    #[default]
    Auto,
    /// Each rank decodes all rows that it trains on.
    Each,
    /// Each decodes a part of the rows, and has the others' parts sent.
    Parts,
}

impl Sharing {
    /// Whether ranks read parts, of so many rows of a data rank at least.
    ///
    /// # Errors
    /// Parts that would be empty, where they are asked for.
    pub(super) fn in_parts(config: &TrainConfig, data: usize, feature: usize) -> Result<bool> {
        let rows = config.data.batch_rows / data.max(1);
        if feature == 1 || config.data.sharing == Self::Each {
            return Ok(false);
        }
        if rows >= feature {
            let worth = config.activations.is_some() || placement(config).1 != Device::Cpu;
            return Ok(config.data.sharing == Self::Parts || worth);
        }
        if config.data.sharing == Self::Auto {
            return Ok(false);
        }
        Err(Error::Invalid(format!(
            "config, key `data.sharing`: {rows} rows cannot be read in parts by {feature} feature ranks; expected `each`, or a larger `data.batch_rows`"
        )))
    }
}

/// A rank's rows of each batch.
#[derive(Debug)]
pub(super) struct Supply {
    strategy: Arc<dyn ParallelismStrategy>,
    kind: Kind,
    device: Device,
    /// Rows of this rank's data share of a batch.
    rows: usize,
    in_parts: bool,
}

impl Supply {
    /// # Errors
    /// What [`Sharing::in_parts`] returns.
    pub(super) fn new(config: &TrainConfig, strategy: &Arc<dyn ParallelismStrategy>) -> Result<Self> {
        let mesh = strategy.mesh();
        let (kind, device) = placement(config);
        Ok(Self {
            strategy: Arc::clone(strategy),
            kind: Precision::Full.kind(kind),
            device,
            rows: mesh.data.share(config.data.batch_rows).len(),
            in_parts: Sharing::in_parts(config, mesh.data.size, mesh.feature.size)?,
        })
    }

    /// What this rank reads.
    pub(super) fn options(&self, all: LoaderOptions) -> LoaderOptions {
        let mesh = self.strategy.mesh();
        let share = all.with_share(mesh.data);
        if self.in_parts { share.with_part(mesh.feature) } else { share }
    }

    /// All rows of this rank's share, of what it has read: where and in the type that steps take them, of at least 32 bits.
    ///
    /// # Errors
    /// What the strategy returns.
    pub(super) fn whole(&self, read: &Batch) -> Result<Batch> {
        let side = |read: &Tensor| -> Result<Tensor> {
            let placed = read.to_device(self.device);
            let whole = if self.in_parts { self.strategy.gather(MeshAxis::Feature, &placed, self.rows)? } else { placed };
            Ok(whole.to_kind(self.kind))
        };
        Ok(Batch { inputs: side(&read.inputs)?, targets: side(&read.targets)? })
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::config::DeviceName;

    use super::*;

    #[test]
    fn parts_are_read_where_they_are_asked_for_or_worth_it() {
        let of = |sharing, device, batch_rows, data, feature| {
            let mut config = TrainConfig::default();
            (config.data.sharing, config.data.batch_rows, config.compute.device) = (sharing, batch_rows, DeviceName(device));
            Sharing::in_parts(&config, data, feature)
        };
        let gpu = Device::Cuda(0);
        for (sharing, device, batch_rows, data, feature, want) in [
            (Sharing::Auto, Device::Cpu, 64, 1, 4, false),
            (Sharing::Auto, gpu, 64, 1, 4, true),
            (Sharing::Auto, gpu, 64, 4, 1, false),
            (Sharing::Auto, gpu, 15, 4, 4, false),
            (Sharing::Each, gpu, 64, 1, 4, false),
            (Sharing::Parts, Device::Cpu, 64, 1, 4, true),
            (Sharing::Parts, Device::Cpu, 2, 2, 1, false),
        ] {
            assert_eq!(
                of(sharing, device, batch_rows, data, feature).expect("fits"),
                want,
                "{sharing:?} {device:?} {batch_rows} {data}x{feature}"
            );
        }
        let error = of(Sharing::Parts, Device::Cpu, 15, 4, 4).expect_err("3 rows").to_string();
        assert!(error.contains("`data.sharing`: 3 rows cannot be read in parts by 4 feature ranks"), "{error}");
    }
}
