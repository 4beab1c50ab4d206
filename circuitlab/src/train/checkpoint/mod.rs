//! Checkpoints: a CLT folder, usable as it is, with a `train/` beside the weights that a run is continued from.
//!
//! `train/` holds a file for each layer and `state.json`. A file has the parameters in normalised units and in all bits that the optimiser
//! keeps, Adam's moments (`W_enc_0.first`), and how long each feature has been silent, of all features whatever the ranks. `state.json` has
//! the step, the sampler's place, the ranks, and checksums of all that was written.
//!
//! Every rank writes its own rows, and reads its own. A checkpoint is written under another name and renamed, so that one that can be seen
//! is whole.

mod folders;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use folders::newest_checkpoint;
pub(super) use folders::{newest, place, prune};
pub(super) use read::Checkpoint;
pub(crate) use state::written_files;
pub(super) use state::{FORMAT, SavedState};
pub(super) use write::{TrainTensor, commit};
