//! Which tool a folder is of.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use circuitlab_core::error::nearest;
use circuitlab_core::tensors::TensorFile;
use serde::Serialize;

use super::find;
use super::source::Source;
use super::{circuit_tracer, clt_forge, gemma_scope, gemma_scope_two};
use crate::Result;
use crate::saved::CARD;

/// A way to store a transcoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// circuit-tracer's folders, which ours are too.
    CircuitTracer,
    /// Gemma Scope's archives of numpy arrays.
    GemmaScope,
    /// Gemma Scope 2's safetensors files.
    #[serde(rename = "gemma-scope-2")]
    GemmaScope2,
    /// CLT-Forge's checkpoints.
    CltForge,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::CircuitTracer, Self::GemmaScope, Self::GemmaScope2, Self::CltForge];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CircuitTracer => "circuit-tracer",
            Self::GemmaScope => "gemma-scope",
            Self::GemmaScope2 => "gemma-scope-2",
            Self::CltForge => "clt-forge",
        }
    }

    /// That of a folder, by its files. A folder that is none of them counts as circuit-tracer's, whose reader says what is missing.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn of(folder: &Path) -> Result<Self> {
        if clt_forge::is(folder)? {
            return Ok(Self::CltForge);
        }
        let files = match find::listed(folder)? {
            Some(files) => files,
            None if folder.join(CARD).is_file() || circuit_tracer::is(folder)? => Vec::new(),
            None => find::tensor_files(folder)?,
        };
        let is_archive = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "npz");
        let is_second = |path: &PathBuf| TensorFile::open(path).is_ok_and(|file| file.contains("w_enc").unwrap_or(false));
        Ok(if files.iter().any(is_archive) {
            Self::GemmaScope
        } else if files.iter().any(is_second) {
            Self::GemmaScope2
        } else {
            Self::CircuitTracer
        })
    }

    /// Opens a folder of this format.
    pub(super) fn open(self, folder: &Path) -> Result<Box<dyn Source>> {
        match self {
            Self::CircuitTracer => circuit_tracer::open(folder),
            Self::GemmaScope => gemma_scope::open(folder),
            Self::GemmaScope2 => gemma_scope_two::open(folder),
            Self::CltForge => clt_forge::open(folder),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name);
        let hint = || nearest(name, names).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| format!("unknown format{}; known: {}", hint(), names.join(", ")))
    }
}
