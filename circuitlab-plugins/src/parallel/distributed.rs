//! What `ddp`, `fsdp`, `feature-sharded` and `hybrid` share: a mesh of processes over PyTorch's process groups.

use std::sync::OnceLock;
use std::time::Duration;

use circuitlab_c10d::{Environment, Limits, Operation, ProcessGroup, Reduction, World};
use circuitlab_core::parallel::{MeshAxis, Pending};
use circuitlab_core::traffic::{Collective, Traffic};
use circuitlab_core::{Axis, Error, Mesh, ParallelismStrategy, Result};
use tch::{Device, Kind, Tensor};

/// How long a strategy waits for other ranks, in seconds; see its settings of the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// For one that is gone, hangs or is cut off.
    pub timeout_seconds: u64,
    /// For one that answers and is late.
    pub patience_seconds: u64,
    /// For all of them to come.
    pub join_seconds: u64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { timeout_seconds: 60, patience_seconds: 1800, join_seconds: 300 }
    }
}

/// The settings of a strategy: its own, and those of [`Waiting`].
macro_rules! settings {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $of:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$doc])* pub $field: $of,)*
            /// A rank that died, hangs or is cut off ends the run of all others within so many seconds. Default: 60.
            pub timeout_seconds: u64,
            /// How many seconds a rank may be late that does answer: it may be writing a checkpoint. Default: 1800.
            pub patience_seconds: u64,
            /// How many seconds ranks wait for each other at the start. Default: 300.
            pub join_seconds: u64,
        }

        impl Default for $name {
            fn default() -> Self {
                let Waiting { timeout_seconds, patience_seconds, join_seconds } = Waiting::default();
                Self { $($field: Default::default(),)* timeout_seconds, patience_seconds, join_seconds }
            }
        }

        impl $name {
            fn waiting(&self) -> Waiting {
                let Self { timeout_seconds, patience_seconds, join_seconds, .. } = *self;
                Waiting { timeout_seconds, patience_seconds, join_seconds }
            }
        }
    };
}
pub(super) use settings;

/// A week.
const MOST_SECONDS: u64 = 604_800;

impl Waiting {
    fn check(&self, strategy: &str) -> Result<()> {
        let all =
            [("timeout_seconds", self.timeout_seconds), ("patience_seconds", self.patience_seconds), ("join_seconds", self.join_seconds)];
        match all.iter().find(|(_, seconds)| !(1..=MOST_SECONDS).contains(seconds)) {
            Some((key, seconds)) => Err(wrong(strategy, key, &format!("expected 1 to {MOST_SECONDS}, got {seconds}"))),
            None => Ok(()),
        }
    }

    fn limits(&self) -> Limits {
        Limits { silent: Duration::from_secs(self.timeout_seconds), longest: Duration::from_secs(self.patience_seconds) }
    }
}

pub(super) fn wrong(strategy: &str, key: &str, message: &str) -> Error {
    Error::config(format!("strategy `{strategy}`, key `{key}`"), message)
}

/// A rank of a mesh of processes, joined. Ranks that share rows are next to each other, and so on one machine where they fit: they talk most.
#[derive(Debug)]
pub struct Distributed {
    mesh: Mesh,
    environment: Environment,
    limits: Limits,
    all: ProcessGroup,
    host: Axes,
    /// The same for tensors on GPUs, once the run is known to compute there.
    gpu: OnceLock<Axes>,
    // Last, so that ranks can ask this one what is the matter until its groups are gone.
    world: World,
}

/// This rank's group on each axis, for tensors of one device.
#[derive(Debug)]
struct Axes {
    data: ProcessGroup,
    feature: ProcessGroup,
}

impl Axes {
    /// Meets the other ranks of both axes. `all` is the group of all ranks of that device, where it is there already.
    fn meet(world: &World, mesh: Mesh, device: Device, limits: Limits, all: Option<&ProcessGroup>) -> Result<Self> {
        let Mesh { data, feature, .. } = mesh;
        let along = |axis: &str, number: usize, members: Vec<usize>| match all.filter(|_| members.len() == world.axis().size) {
            Some(all) => Ok(all.clone()),
            None if device == Device::Cpu => world.group(&format!("{axis} {number}"), &members, limits),
            None => world.group_on(device, &format!("{axis} {number} on GPUs"), &members, limits),
        };
        let rows = (0..data.size).map(|other| other * feature.size + feature.rank).collect();
        let features = (0..feature.size).map(|other| data.rank * feature.size + other).collect();
        Ok(Self { data: along("data", feature.rank, rows)?, feature: along("feature", data.rank, features)? })
    }

    fn group(&self, axis: MeshAxis) -> &ProcessGroup {
        match axis {
            MeshAxis::Data => &self.data,
            MeshAxis::Feature => &self.feature,
        }
    }
}

impl Distributed {
    /// Meets the other ranks of `environment`; returns when all are there. `strategy` is named in errors.
    ///
    /// # Errors
    /// Times out of range; a mesh of another number of ranks than there are; what [`World::join`] and [`World::group`] return.
    pub fn join(strategy: &str, environment: &Environment, [data, feature]: [usize; 2], sharded: bool, waiting: &Waiting) -> Result<Self> {
        waiting.check(strategy)?;
        let (rank, ranks) = (environment.rank, environment.ranks);
        if data.checked_mul(feature) != Some(ranks) {
            return Err(Error::Invalid(format!(
                "strategy `{strategy}`: a mesh of data = {data} and feature = {feature} is for {} ranks, and there are {ranks}",
                data.saturating_mul(feature)
            )));
        }
        let world = World::join(environment, Duration::from_secs(waiting.join_seconds))?;
        let place = [rank / feature, rank % feature];
        let limits = waiting.limits();
        let all = world.group("all", &(0..ranks).collect::<Vec<_>>(), limits)?;
        let mesh = Mesh { data: Axis { rank: place[0], size: data }, feature: Axis { rank: place[1], size: feature }, sharded };
        let host = Axes::meet(&world, mesh, Device::Cpu, limits, Some(&all))?;
        Ok(Self { mesh, environment: environment.clone(), limits, all, host, gpu: OnceLock::new(), world })
    }

    /// The group of an axis for what is on a device.
    fn group(&self, axis: MeshAxis, device: Device) -> &ProcessGroup {
        let on_gpu = self.gpu.get().filter(|_| device != Device::Cpu);
        on_gpu.unwrap_or(&self.host).group(axis)
    }
}

/// Gradients below this many bytes are sent together: a message costs about as much as so many bytes.
const SMALL_BYTES: usize = 1 << 16;

impl ParallelismStrategy for Distributed {
    fn mesh(&self) -> Mesh {
        self.mesh
    }

    fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> Result<()> {
        if self.mesh.axis(axis).size == 1 {
            return Ok(());
        }
        self.group(axis, tensor.device()).all_reduce(tensor, Reduction::Sum)
    }

    fn reduce_gradients(&self, gradients: &mut [Tensor]) -> Result<()> {
        if self.mesh.data.size == 1 {
            return Ok(());
        }
        let is_small = |gradient: &&Tensor| gradient.numel() * gradient.kind().elt_size_in_bytes() < SMALL_BYTES;
        let (small, large): (Vec<&Tensor>, Vec<&Tensor>) = gradients.iter().partition(is_small);
        let start = |tensor: &Tensor| self.group(MeshAxis::Data, tensor.device()).start_all_reduce(tensor.shallow_clone(), Reduction::Sum);
        let under_way = large.into_iter().map(start).collect::<Result<Vec<_>>>()?;
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half] {
            self.sum_together(small.iter().copied().filter(|gradient| gradient.kind() == kind))?;
        }
        for work in under_way {
            drop(work.wait()?);
        }
        Ok(())
    }

    fn gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Tensor> {
        self.group(axis, own.device()).all_gather(own, &shares(self.mesh.axis(axis).size, rows))
    }

    fn begin_sum(&self, axis: MeshAxis, tensor: Tensor) -> Result<Pending> {
        if self.mesh.axis(axis).size == 1 {
            return Ok(Pending::done(tensor));
        }
        let work = self.group(axis, tensor.device()).start_all_reduce(tensor, Reduction::Sum)?;
        Ok(Pending::new(move || work.wait()))
    }

    fn begin_gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Pending> {
        let work = self.group(axis, own.device()).start_all_gather(own, &shares(self.mesh.axis(axis).size, rows))?;
        Ok(Pending::new(move || work.wait()))
    }

    fn begin_scatter(&self, axis: MeshAxis, whole: &Tensor) -> Result<Pending> {
        let rows = whole.size().first().map_or(0, |rows| *rows as usize);
        let work = self.group(axis, whole.device()).start_reduce_scatter(whole, &shares(self.mesh.axis(axis).size, rows))?;
        Ok(Pending::new(move || work.wait()))
    }

    fn barrier(&self) -> Result<()> {
        self.all.barrier()
    }

    /// Where that is a GPU, meets the others once more: NCCL has groups of its own.
    fn device(&self, asked: Device) -> Result<Device> {
        let device = self.environment.device(asked)?;
        if device != Device::Cpu && self.all.axis().size > 1 && self.gpu.get().is_none() {
            let groups = Axes::meet(&self.world, self.mesh, device, self.limits, None)?;
            // Asked by one thread, once a run.
            let _ = self.gpu.set(groups);
        }
        Ok(device)
    }

    fn traffic(&self) -> Result<Vec<Traffic>> {
        let kinds = [
            (Operation::AllReduce, Collective::Sum),
            (Operation::AllGather, Collective::Gather),
            (Operation::ReduceScatter, Collective::Scatter),
        ];
        let axes = [MeshAxis::Data, MeshAxis::Feature].into_iter().filter(|axis| self.mesh.axis(*axis).size > 1);
        let along = |axis| {
            let sent = [Some(&self.host), self.gpu.get()].map(|groups| groups.map(|groups| groups.group(axis).traffic()));
            let sum = |of: &dyn Fn(&circuitlab_c10d::Traffic) -> u64| sent.iter().flatten().map(of).sum();
            kinds.map(|(operation, collective)| Traffic {
                axis,
                collective,
                calls: sum(&|sent| sent.calls(operation)),
                bytes: sum(&|sent| sent.bytes(operation)),
            })
        };
        Ok(axes.flat_map(along).collect())
    }
}

/// How many rows each rank of an axis has.
fn shares(size: usize, rows: usize) -> Vec<usize> {
    (0..size).map(|rank| Axis { rank, size }.share(rows).len()).collect()
}

impl Distributed {
    /// Adds tensors of one type up over the data axis, in one message.
    fn sum_together<'a>(&self, tensors: impl Iterator<Item = &'a Tensor>) -> Result<()> {
        let tensors: Vec<&Tensor> = tensors.collect();
        if tensors.is_empty() {
            return Ok(());
        }
        let flat = tensors.iter().map(|tensor| tensor.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?;
        let mut flat = Tensor::f_cat(&flat, 0)?;
        self.group(MeshAxis::Data, flat.device()).all_reduce(&mut flat, Reduction::Sum)?;
        let mut start = 0;
        for tensor in tensors {
            let count = tensor.numel() as i64;
            tensor.shallow_clone().f_copy_(&flat.f_narrow(0, start, count)?.f_view(tensor.size().as_slice())?)?;
            start += count;
        }
        Ok(())
    }
}
