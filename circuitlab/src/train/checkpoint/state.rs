//! `state.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::WrittenRows;
use circuitlab_core::{Error as CoreError, Mesh, files};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::cache::SamplerState;

/// Version of the layout of `train/`. Version 1 had whole parameters and moments in three files.
pub(in crate::train) const FORMAT: u32 = 2;

/// What a rank wrote, by file.
pub(crate) type Written = BTreeMap<PathBuf, Vec<WrittenRows>>;

/// Where a run stands, and what its files were when they were written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::train) struct SavedState {
    /// [`FORMAT`].
    pub(in crate::train) format: u32,
    /// Steps taken.
    pub(in crate::train) step: u64,
    /// Which rows have been drawn.
    pub(in crate::train) sampler: SamplerState,
    /// The ranks that wrote it.
    pub(in crate::train) ranks: Ranks,
    /// What each of them wrote.
    pub(in crate::train) written: Vec<Written>,
}

/// A mesh without a place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::train) struct Ranks {
    data: usize,
    feature: usize,
    sharded: bool,
}

impl From<Mesh> for Ranks {
    fn from(mesh: Mesh) -> Self {
        Self { data: mesh.data.size, feature: mesh.feature.size, sharded: mesh.sharded }
    }
}

/// What every version has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl SavedState {
    fn path(folder: &Path) -> PathBuf {
        folder.join("train/state.json")
    }

    pub(in crate::train) fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| CoreError::Invalid(error.to_string()))?;
        Ok(files::write_atomic(&Self::path(folder), |out| out.write_all(text.as_bytes()))?)
    }

    pub(in crate::train) fn read(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        let text = fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
        let damaged = |error: serde_json::Error| CoreError::format(&path, error.to_string());
        let Format { format } = serde_json::from_str(&text).map_err(damaged)?;
        if format != FORMAT {
            let message = format!(
                "checkpoint format {format}, and this version goes on from format {FORMAT}; go on with the version that wrote it, or start a new run"
            );
            return Err(CoreError::format(&path, message).into());
        }
        Ok(serde_json::from_str(&text).map_err(damaged)?)
    }
}

/// What was written into each file of a checkpoint, by all ranks; nothing of a folder that is no checkpoint.
pub(crate) fn written_files(folder: &Path) -> Result<Option<Written>> {
    if !SavedState::path(folder).exists() {
        return Ok(None);
    }
    let mut all = Written::new();
    for (file, rows) in SavedState::read(folder)?.written.into_iter().flatten() {
        all.entry(file).or_default().extend(rows);
    }
    Ok(Some(all))
}
