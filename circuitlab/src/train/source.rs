//! What a run's rows come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_core::ModelSource;

use super::config::{ActivationsConfig, TrainConfig};
use super::trainer::TrainRequest;
use crate::cache::{Made, Rows};
use crate::{Error, Result, hub, model};

/// Opens the cache, or the model that makes the rows.
pub(super) fn open(request: &TrainRequest<'_>, config: &TrainConfig) -> Result<Rows> {
    match (request.cache, &config.activations) {
        (Some(cache), None) => Rows::open(cache, request.registry),
        (None, Some(activations)) => made(request, activations),
        (Some(cache), Some(activations)) => Err(Error::Invalid(format!(
            "the run is given the cache `{}` and the model `{}`, whose activations would be made as they are needed; expected one of them",
            cache.display(),
            activations.model
        ))),
        (None, None) if request.resume => Err(Error::Invalid("the run was started on a cache; name it again by `--cache`".to_owned())),
        (None, None) => Err(Error::Invalid("there is nothing to train on; expected a cache, or a model and text".to_owned())),
    }
}

fn made(request: &TrainRequest<'_>, activations: &ActivationsConfig) -> Result<Rows> {
    let found = hub::find_model(Path::new(&activations.model), request.progress)?;
    let ActivationsConfig { device, dtype, attention_gate, .. } = *activations;
    crate::device::resolve(device)?;
    let source = ModelSource { device, dtype, attention_gate, ..found };
    let model = model::open(request.registry, &source)?;
    let made = Made::new(request.registry, model, &source.path, &activations.text, &activations.settings, request.progress)?;
    Ok(Rows::Made(Arc::new(made)))
}

/// The same with places that do not depend on the current folder: a run may be resumed from another one.
pub(super) fn placed(activations: ActivationsConfig) -> ActivationsConfig {
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let local = |path: &Path| !path.to_str().is_some_and(|text| text.starts_with("hf:"));
    let placed = |path: PathBuf| if local(&path) { whole(&path) } else { path };
    let model = placed(PathBuf::from(&activations.model)).to_str().map_or(activations.model, str::to_owned);
    ActivationsConfig { model, text: activations.text.into_iter().map(placed).collect(), ..activations }
}
