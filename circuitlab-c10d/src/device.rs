//! Which of its host's GPUs a rank computes on.

use std::env;

use circuitlab_core::{Error, Result};
use tch::{Cuda, Device};

use crate::environment::Environment;

const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// What is known of the host's GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gpus {
    /// How many libtorch finds.
    count: usize,
    /// Whether the launcher gave this rank one of its own, and hid the others.
    is_own: bool,
}

impl Environment {
    /// Where this rank computes when the run is to compute on `asked`: on a CPU all ranks do, and of the GPUs each rank of a host takes its
    /// own, by its number there, from the one asked for on. A rank that sees no other GPU than one that `CUDA_VISIBLE_DEVICES` names takes
    /// that, and so does one whose launcher does not number the ranks of a host.
    ///
    /// # Errors
    /// A rank that finds no GPU of its number.
    pub fn device(&self, asked: Device) -> Result<Device> {
        let Device::Cuda(_) = asked else { return Ok(asked) };
        let count = if Cuda::is_available() { usize::try_from(Cuda::device_count()).unwrap_or(0) } else { 0 };
        let named = env::var(VISIBLE).is_ok_and(|list| !list.trim().is_empty() && !list.contains(','));
        self.device_among(asked, Gpus { count, is_own: named && count == 1 })
    }

    fn device_among(&self, asked: Device, gpus: Gpus) -> Result<Device> {
        let (Device::Cuda(first), Some(local)) = (asked, self.local_rank) else { return Ok(asked) };
        if gpus.is_own && first == 0 {
            return Ok(asked);
        }
        let index = first.saturating_add(local);
        // Where there is none at all, that is said of the device itself.
        if index < gpus.count || gpus.count == 0 || self.ranks == 1 {
            return Ok(Device::Cuda(if self.ranks == 1 { first } else { index }));
        }
        let last = gpus.count - 1;
        Err(Error::Invalid(format!(
            "rank {} is number {local} on its host and needs the GPU `cuda:{index}`, and the host's last one is `cuda:{last}`; start at most {} ranks there, or compute on `cpu`",
            self.rank,
            gpus.count.saturating_sub(first)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_of_a_host_has_a_gpu() {
        let of = |local_rank, asked, count, is_own| {
            let environment = Environment { rank: 9, ranks: 16, local_rank, ..Environment::alone() };
            environment.device_among(asked, Gpus { count, is_own })
        };
        let cuda = Device::Cuda;
        for (local, asked, count, is_own, want) in [
            (Some(3), Device::Cpu, 8, false, Device::Cpu),
            (Some(0), cuda(0), 8, false, cuda(0)),
            (Some(7), cuda(0), 8, false, cuda(7)),
            (Some(3), cuda(4), 8, false, cuda(7)),
            (Some(3), cuda(0), 1, true, cuda(0)),
            (Some(3), cuda(0), 0, false, cuda(3)),
            (None, cuda(2), 8, false, cuda(2)),
        ] {
            assert_eq!(of(local, asked, count, is_own).expect("there"), want, "{local:?} {asked:?} {count} {is_own}");
        }
        let error = of(Some(2), cuda(0), 2, false).expect_err("two").to_string();
        assert_eq!(
            error,
            "rank 9 is number 2 on its host and needs the GPU `cuda:2`, and the host's last one is `cuda:1`; start at most 2 ranks there, or compute on `cpu`"
        );
        assert!(of(Some(1), cuda(1), 2, false).expect_err("one is left").to_string().contains("at most 1 ranks"));
        let alone = Environment { local_rank: Some(1), ..Environment::alone() };
        assert_eq!(
            alone.device_among(cuda(1), Gpus { count: 2, is_own: false }).expect("there"),
            cuda(1),
            "a run of one takes what it is given"
        );
    }
}
