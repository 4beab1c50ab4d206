//! Checkpoints: a CLT folder, usable as it is, with a `train/` beside the weights that a run is continued from.
//!
//! `train/` holds the parameters in normalised units and in all bits that the optimiser keeps, both Adam moments, how long each feature
//! has been silent, and `state.json` with the step and the sampler's place. A checkpoint is written under another name and renamed, so that one that can
//! be seen is whole.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{Error as CoreError, Mesh, ParameterSpec, Parameters, files};
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

/// The tensors of `train/` by file and name. They share memory with what they were taken from.
#[derive(Debug)]
pub(super) struct SavedTensors([(&'static str, Vec<(String, Tensor)>); 4]);

const PARAMETERS: &str = "parameters.safetensors";
const MOMENTS: [&str; 2] = ["adam_first.safetensors", "adam_second.safetensors"];
const COUNTERS: &str = "counters.safetensors";
const SILENT_ROWS: &str = "silent_rows";

impl SavedTensors {
    /// What a run changes, of all features. `silent_rows` are the rows since each last fired: `[layer, d_features]`.
    pub(super) fn of(masters: &Parameters, [first, second]: [Vec<(String, Tensor)>; 2], silent_rows: Tensor) -> Self {
        let named = masters.specs().iter().zip(masters.values()).map(|(spec, value)| (spec.name.clone(), value.shallow_clone()));
        let counters = vec![(SILENT_ROWS.to_owned(), silent_rows)];
        Self([(PARAMETERS, named.collect()), (MOMENTS[0], first), (MOMENTS[1], second), (COUNTERS, counters)])
    }
}

/// Writes a checkpoint: `export` fills the CLT folder, then `train/` follows, then all of it gets its name.
pub(super) fn write(
    checkpoints: &Path,
    state: &SavedState,
    tensors: &SavedTensors,
    export: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let place = checkpoints.join(format!("step-{:08}", state.step));
    files::remove_folder(&place)?;
    files::write_folder(&place, |part| fill(part, state, tensors, export))?;
    Ok(place)
}

fn fill(part: &Path, state: &SavedState, tensors: &SavedTensors, export: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let train = part.join("train");
    fs::create_dir_all(&train).map_err(CoreError::io("create", &train))?;
    export(part)?;
    for (file, tensors) in &tensors.0 {
        tensors::write(&train.join(file), tensors)?;
    }
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

/// The `train/` of a checkpoint, opened.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) state: SavedState,
    parameters: TensorFile,
    moments: [TensorFile; 2],
    counters: TensorFile,
}

impl Checkpoint {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let train = folder.join("train");
        let path = train.join("state.json");
        let text = fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
        let state: SavedState = serde_json::from_str(&text).map_err(|error| CoreError::format(&path, error.to_string()))?;
        if state.format != FORMAT {
            return Err(CoreError::format(&path, format!("checkpoint format {}, expected {FORMAT}", state.format)).into());
        }
        let open = |file: &str| TensorFile::open(&train.join(file));
        let moments = [open(MOMENTS[0])?, open(MOMENTS[1])?];
        Ok(Self { state, parameters: open(PARAMETERS)?, moments, counters: open(COUNTERS)? })
    }

    /// The parameters that a rank of the mesh owns; `specs` are those of all features.
    pub(super) fn parameters(&self, specs: &[ParameterSpec], mesh: &Mesh, kind: Kind, device: Device) -> Result<Parameters> {
        let part = |spec: &ParameterSpec| {
            let whole = self.parameters.tensor(&spec.name, Some(kind), device)?;
            let part = spec.narrow(&whole, mesh)?;
            // Not a view, which would keep all of it in memory.
            if part.numel() < whole.numel() { Ok(part.copy()) } else { Ok(part) }
        };
        let values = specs.iter().map(part).collect::<Result<_, CoreError>>()?;
        Ok(Parameters::new(specs.iter().map(|spec| spec.part(mesh)).collect(), values)?)
    }

    pub(super) fn moments(&self) -> [&TensorFile; 2] {
        self.moments.each_ref()
    }

    pub(super) fn silent_rows(&self, device: Device) -> Result<Tensor> {
        Ok(self.counters.tensor(SILENT_ROWS, Some(Kind::Int64), device)?)
    }
}

/// Checkpoints from the oldest to the newest.
fn all(checkpoints: &Path) -> Result<Vec<PathBuf>> {
    let step = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let mut whole: Vec<PathBuf> = entries(checkpoints)?.into_iter().filter(|path| step(path).is_some()).collect();
    whole.sort_by_key(step);
    Ok(whole)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CoreError::io("read", folder)(error).into()),
    };
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(CoreError::io("read", folder))?)
}
