//! Checkpoints: a CLT folder, usable as it is, with a `train/` beside the weights that a run is continued from.
//!
//! `train/` holds the parameters in normalised units, both Adam moments, how long each feature has been silent, and
//! `state.json` with the step and the sampler's place. A checkpoint is written under another name and renamed, so that one that can
//! be seen is whole.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{Error as CoreError, Parameters, files};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::cache::SamplerState;

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedState {
    /// Version of this file's layout.
    pub(super) format: u32,
    /// Steps taken.
    pub(super) step: u64,
    /// Which rows have been drawn.
    pub(super) sampler: SamplerState,
}

pub(super) const FORMAT: u32 = 1;

/// The tensors of `train/`, in the order of the parameters.
#[derive(Debug)]
pub(super) struct SavedTensors {
    pub(super) params: Vec<Tensor>,
    pub(super) first: Vec<Tensor>,
    pub(super) second: Vec<Tensor>,
    /// Rows since each feature last fired: `[layer, d_features]`.
    pub(super) silent_rows: Tensor,
}

/// Writes a checkpoint: `export` fills the CLT folder, then `train/` follows, then all of it gets its name.
pub(super) fn write(
    checkpoints: &Path,
    state: &SavedState,
    params: &Parameters,
    moments: (&[Tensor], &[Tensor]),
    silent_rows: &Tensor,
    export: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let place = checkpoints.join(format!("step-{:08}", state.step));
    files::remove_folder(&place)?;
    files::write_folder(&place, |part| fill(part, state, params, moments, silent_rows, export))?;
    Ok(place)
}

fn fill(
    part: &Path,
    state: &SavedState,
    params: &Parameters,
    (first, second): (&[Tensor], &[Tensor]),
    silent_rows: &Tensor,
    export: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let train = part.join("train");
    fs::create_dir_all(&train).map_err(CoreError::io("create", &train))?;
    export(part)?;
    let named = |values: &[Tensor]| -> Vec<(String, Tensor)> {
        params.specs().iter().zip(values).map(|(spec, value)| (spec.name.clone(), value.shallow_clone())).collect()
    };
    tensors::write(&train.join("parameters.safetensors"), &named(params.values()))?;
    tensors::write(&train.join("adam_first.safetensors"), &named(first))?;
    tensors::write(&train.join("adam_second.safetensors"), &named(second))?;
    tensors::write(&train.join("counters.safetensors"), &[("silent_rows".to_owned(), silent_rows.shallow_clone())])?;
    let text = serde_json::to_string_pretty(state).map_err(|error| CoreError::Invalid(error.to_string()))?;
    Ok(files::write_atomic(&train.join("state.json"), |out| out.write_all(text.as_bytes()))?)
}

/// The newest checkpoint, if there is one.
pub(super) fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    Ok(all(checkpoints)?.pop())
}

/// Removes all but the newest `keep`, and what a killed process left half-written.
pub(super) fn prune(checkpoints: &Path, keep: usize) -> Result<()> {
    let whole = all(checkpoints)?;
    for old in whole.iter().rev().skip(keep.max(1)) {
        files::remove_folder(old)?;
    }
    for entry in entries(checkpoints)? {
        if entry.extension().is_some_and(|extension| extension == "part") {
            files::remove_folder(&entry)?;
        }
    }
    Ok(())
}

/// Reads `train/` back.
pub(super) fn read(checkpoint: &Path, params: &Parameters, kind: Kind, device: Device) -> Result<(SavedState, SavedTensors)> {
    let train = checkpoint.join("train");
    let path = train.join("state.json");
    let text = fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
    let state: SavedState = serde_json::from_str(&text).map_err(|error| CoreError::format(&path, error.to_string()))?;
    if state.format != FORMAT {
        return Err(CoreError::format(&path, format!("checkpoint format {}, expected {FORMAT}", state.format)).into());
    }
    let values = |name: &str| -> Result<Vec<Tensor>> {
        let file = TensorFile::open(&train.join(name))?;
        Ok(params.specs().iter().map(|spec| file.tensor(&spec.name, Some(kind), device)).collect::<circuitlab_core::Result<_>>()?)
    };
    let tensors = SavedTensors {
        params: values("parameters.safetensors")?,
        first: values("adam_first.safetensors")?,
        second: values("adam_second.safetensors")?,
        silent_rows: TensorFile::open(&train.join("counters.safetensors"))?.tensor("silent_rows", Some(Kind::Int64), device)?,
    };
    Ok((state, tensors))
}

/// Checkpoints from the oldest to the newest.
fn all(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let step = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let mut whole: Vec<PathBuf> = entries(checkpoints)?.into_iter().filter(|path| step(path).is_some()).collect();
    whole.sort_by_key(step);
    Ok(whole)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(CoreError::io("read", folder))?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(CoreError::io("read", folder))?)
}
