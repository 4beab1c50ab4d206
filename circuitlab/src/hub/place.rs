//! Where a model is: in a folder, or at the hub.

use std::path::Path;

use circuitlab_core::ModelSource;

use super::fetch::fetch_model;
use super::spec::{HubKind, HubSpec};
use crate::{Progress, Result};

/// Takes a folder as it is, and fetches `hf:ORG/NAME[@REVISION]`, which is then called so: a snapshot's folder is called after a commit.
///
/// # Errors
/// As [`fetch_model`]. Whether a folder is there is seen when the model is opened.
pub fn find_model(place: &Path, progress: &dyn Progress) -> Result<ModelSource> {
    match place.to_str().filter(|text| HubSpec::is_meant(text)) {
        Some(text) => {
            let spec = HubSpec::parse(HubKind::Model, text)?;
            Ok(ModelSource { name: Some(spec.name().to_owned()), ..ModelSource::new(fetch_model(&spec, progress)?) })
        }
        None => Ok(ModelSource::new(place)),
    }
}
