//! PyTorch's own process groups (c10d), which live inside libtorch, behind a safe interface.
//!
//! [`Environment`] reads what a launcher told this process: torchrun's variables, or SLURM's. [`World::join`] meets the other ranks at
//! the master's address. [`World::group`] makes groups of some of them, whose collectives go through Gloo:
//!
//! ```no_run
//! use std::time::Duration;
//! use circuitlab_c10d::{Environment, Limits, Reduction, World};
//! use tch::Tensor;
//!
//! # fn main() -> circuitlab_core::Result<()> {
//! let world = World::join(&Environment::read()?, Duration::from_secs(300))?;
//! let everyone: Vec<usize> = (0..world.axis().size).collect();
//! let limits = Limits { silent: Duration::from_secs(60), longest: Duration::from_secs(1800) };
//! let group = world.group("all", &everyone, limits)?;
//! let mut tensor = Tensor::from_slice(&[1.0_f32, 2.0]);
//! group.all_reduce(&mut tensor, Reduction::Sum)?;
//! # Ok(())
//! # }
//! ```
//!
//! **Errors.** Each rank keeps a port open on which it says how far it is. A rank that waits has an eye on another one, and where an operation
//! fails all are asked: so one that is gone, one that hangs and one that is in another operation are told apart, whatever the collective saw of
//! it. The error names this rank, the operation and its number in the group, and who is at fault; the other ranks are told, and stop too. A
//! group is of no use after that. See [`Limits`] for how long all this takes.
//!
//! **Devices.** A group's tensors are all on the CPU, and go through Gloo, or each rank's are on a CUDA device of its own, and go through
//! NCCL. What makes the latter is a library of its own (`scripts/build-nccl`), opened when it is needed.
//!
//! **Memory.** An operation owns the tensors that it works on until it ended, also where its handle is dropped.
//!
//! **Ending.** Dropping a group never waits for ranks that do not answer: what is still under way is left to a thread that the end of the
//! process takes along.

mod device;
mod environment;
mod ffi;
mod group;
mod hosts;
mod late;
mod nccl;
mod place;
mod presence;
mod store;
mod traffic;
mod work;
mod world;

pub use environment::Environment;
pub use group::{Limits, ProcessGroup, Reduction};
pub use store::Store;
pub use traffic::{Operation, Traffic};
pub use work::Work;
pub use world::World;
