//! Where a model is: in a folder, or at the hub.

use std::path::{Path, PathBuf};

use super::fetch::fetch_model;
use super::spec::{HubKind, HubSpec};
use crate::{Progress, Result};

/// A model's folder on this machine, and what the model is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// The model's name, where it is not the folder's own: a snapshot's folder is called after a commit.
    pub name: Option<String>,
}

impl ModelFolder {
    /// Takes a folder as it is, and fetches `hf:ORG/NAME[@REVISION]`.
    ///
    /// # Errors
    /// As [`fetch_model`]. Whether a folder is there is seen when the model is opened.
    pub fn find(place: &Path, progress: &dyn Progress) -> Result<Self> {
        match place.to_str().filter(|text| HubSpec::is_meant(text)) {
            Some(text) => {
                let spec = HubSpec::parse(HubKind::Model, text)?;
                Ok(Self { path: fetch_model(&spec, progress)?, name: Some(spec.name().to_owned()) })
            }
            None => Ok(place.into()),
        }
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for ModelFolder {
    fn from(path: &P) -> Self {
        Self { path: path.as_ref().to_path_buf(), name: None }
    }
}
