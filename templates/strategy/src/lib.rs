//! `star`: ranks that read different rows and add their gradients up over TCP, with rank 0 in the middle.
//!
//! A sum goes to the hub, is added there in the order of the ranks, and comes back. So it has the same bits on every rank and
//! in every run, whoever is quicker. The hub carries `2 (ranks - 1)` times the size of a sum: this is for a few machines.

mod link;

use std::env;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::tch::{Device, Kind, Tensor};
use circuitlab_core::{Axis, Construct, Error, Mesh, ParallelismStrategy, Result, register};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use link::Link;

register!(strategy "star" => StarConfig, "data parallelism over TCP; rank 0 adds up in rank order, to the same bits on every rank");
circuitlab_core::export_plugin!();

/// Settings of `star`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StarConfig {
    /// This process's number, from 0. Default: the environment's `RANK`.
    pub rank: Option<usize>,
    /// How many processes there are. Default: the environment's `WORLD_SIZE`.
    pub ranks: Option<usize>,
    /// Where rank 0 listens and the others find it, `host:port`. Default: the environment's `MASTER_ADDR` and `MASTER_PORT`.
    pub address: Option<String>,
    /// How many seconds a rank waits for another one, at the start and in every sum; up to a week. Default: 300.
    pub timeout_seconds: u64,
}

impl Default for StarConfig {
    fn default() -> Self {
        Self { rank: None, ranks: None, address: None, timeout_seconds: 300 }
    }
}

/// A week.
const MOST_SECONDS: u64 = 604_800;

/// This rank and its connections.
#[derive(Debug)]
pub struct Star {
    data: Axis,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Sums so far. All ranks must be at the same one.
    calls: u64,
    /// Of the hub, to ranks 1, 2, ..; of the others, to the hub.
    links: Vec<Link>,
}

impl Construct for StarConfig {
    type Output = Star;

    /// Returns when all ranks are there.
    fn construct(&self) -> Result<Star> {
        if !(1..=MOST_SECONDS).contains(&self.timeout_seconds) {
            return Err(wrong("timeout_seconds", format!("expected 1 to {MOST_SECONDS}, got {}", self.timeout_seconds)));
        }
        let size = number("ranks", self.ranks, "WORLD_SIZE")?;
        // A run of one needs nobody's number or address.
        let rank = if size == 1 && self.rank.is_none() { 0 } else { number("rank", self.rank, "RANK")? };
        if rank >= size {
            return Err(wrong("rank", format!("rank {rank} of {size} ranks; expected a rank below their number")));
        }
        let timeout = Duration::from_secs(self.timeout_seconds);
        let links = match rank {
            _ if size == 1 => Vec::new(),
            0 => Link::to_all(size, &self.address()?, timeout)?,
            _ => vec![Link::to_hub(rank, size, &self.address()?, timeout)?],
        };
        Ok(Star { data: Axis { rank, size }, state: Mutex::new(State { calls: 0, links }) })
    }
}

impl StarConfig {
    fn address(&self) -> Result<String> {
        match &self.address {
            Some(address) => Ok(address.clone()),
            None => Ok(format!("{}:{}", variable("address", "MASTER_ADDR")?, variable("address", "MASTER_PORT")?)),
        }
    }
}

fn number(key: &str, set: Option<usize>, name: &str) -> Result<usize> {
    if let Some(number) = set {
        return Ok(number);
    }
    let text = variable(key, name)?;
    text.parse().map_err(|_| wrong(key, format!("the environment's {name} is `{text}`; expected a number")))
}

fn variable(key: &str, name: &str) -> Result<String> {
    env::var(name).map_err(|_| wrong(key, format!("it is not set, and neither is {name} in the environment")))
}

fn wrong(key: &str, message: impl Into<String>) -> Error {
    Error::config(format!("strategy `star`, key `{key}`"), message)
}

impl ParallelismStrategy for Star {
    fn mesh(&self) -> Mesh {
        Mesh { data: self.data, feature: Axis::SINGLE, sharded: false }
    }

    fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> Result<()> {
        // A rank owns all features, so over that axis its own tensor is the sum.
        if axis == MeshAxis::Feature || self.data.size == 1 {
            return Ok(());
        }
        let kind = tensor.kind();
        if !matches!(kind, Kind::Float | Kind::Double) {
            return Err(Error::Invalid(format!("strategy `star`: cannot add up tensors of {kind:?}; expected f32 or f64")));
        }
        let sum = self.exchange("sum", &tensor.f_to_device(Device::Cpu)?)?;
        // Into the tensor's own memory, whatever its device and strides.
        Ok(tensor.f_copy_(&sum)?)
    }

    fn barrier(&self) -> Result<()> {
        // A sum of nothing: the hub answers when all have asked.
        self.exchange("barrier", &Tensor::f_zeros([0], (Kind::Float, Device::Cpu))?).map(drop)
    }
}

impl Star {
    /// The sum of all ranks' tensors, on the CPU.
    fn exchange(&self, operation: &str, own: &Tensor) -> Result<Tensor> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { calls, links } = &mut *state;
        *calls += 1;
        let (kind, entries) = (own.kind(), own.numel());
        let header = [*calls, kind.elt_size_in_bytes() as u64, entries as u64];
        let mut bytes = vec![0; entries * kind.elt_size_in_bytes()];
        let read = |bytes: &[u8]| Tensor::f_from_data_size(bytes, &own.size(), kind);
        let mut sum = own.f_contiguous()?;
        if self.data.rank > 0 {
            let Some(hub) = links.first_mut() else { return Ok(sum) };
            sum.f_copy_data_u8(&mut bytes, entries)?;
            hub.send(operation, header, &bytes)?;
            hub.receive(operation, header, &mut bytes)?;
            return Ok(read(&bytes)?);
        }
        for link in &mut *links {
            link.receive(operation, header, &mut bytes)?;
            sum = sum.f_add(&read(&bytes)?)?;
        }
        sum.f_copy_data_u8(&mut bytes, entries)?;
        links.iter_mut().try_for_each(|link| link.send(operation, header, &bytes))?;
        Ok(sum)
    }
}
