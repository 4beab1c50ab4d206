//! Taking a transcoder in from another tool's files.

use std::path::{Path, PathBuf};

use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::plugin::Kind;
use circuitlab_core::{BlockHook, LanguageModel, ModelSource, Registry, SparsityActivation, Spec, Transcoder};
use serde::Serialize;

use super::format::Format;
use super::source::{Facts, Source};
use super::write::{Target, write};
use crate::saved::{self, Card, Provenance, check_hooks};
use crate::{Error, Progress, Result, model};

/// What to take in, and where to.
#[derive(Debug)]
pub struct ImportRequest<'a> {
    /// The plugins.
    pub registry: &'a Registry,
    /// Somebody's folder.
    pub from: &'a Path,
    /// The new folder.
    pub out: &'a Path,
    /// Whose folder it is; found out where none is given.
    pub format: Option<Format>,
    /// The folder of the language model that it belongs to.
    pub model: Option<&'a Path>,
    /// Where it reads and writes in a block; as the folder or its tool has it where none are given.
    pub hooks: Option<[BlockHook; 2]>,
    /// The type of its numbers; as they are where none is given.
    pub dtype: Option<FloatKind>,
    /// Told of every piece.
    pub progress: &'a dyn Progress,
}

/// What was taken in.
#[derive(Debug, Clone, Serialize)]
pub struct Imported {
    /// The folder that it was in.
    pub from: PathBuf,
    /// The folder that it is in now.
    pub out: PathBuf,
    /// Whose folder it was.
    pub format: Format,
    /// `cross_layer_transcoder` or `transcoder_set`.
    pub model_kind: String,
    /// Which features are active.
    pub activation: Spec,
    /// Whether there is a linear skip.
    pub skip: bool,
    /// Its layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Features of each layer.
    pub d_features: usize,
    /// Where it reads and writes.
    pub hooks: [String; 2],
    /// The model that it was compared with.
    pub model: Option<String>,
    /// Its tensor files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads another tool's files into a folder of our own, which is there when all of it is.
///
/// # Errors
/// [`Error::Exists`], files that are missing, damaged or do not fit together, numbers that are not finite, places that no transcoder stands
/// between, a model that it is not of, and what the file system returns.
pub fn import(request: &ImportRequest<'_>) -> Result<Imported> {
    let ImportRequest { registry, from, out, .. } = request;
    if !from.is_dir() {
        return Err(Error::Invalid(format!("`{}`: there is no such folder", from.display())));
    }
    let format = request.format.map_or_else(|| Format::of(from), Ok)?;
    let mut source = format.open(from)?;
    name_hooks(&mut source.facts_mut().card, request)?;
    let (transcoder, activation) = plugins(registry, from, source.facts())?;
    let model = request.model.map(|folder| open_model(request, folder)).transpose()?;
    if let Some(model) = &model {
        provenance(source.as_mut(), registry, from, &**model, [&transcoder, &activation])?;
    }
    let target = Target::Own { registry, transcoder: &transcoder, activation: &activation };
    let written = write(&*source, &target, from, out, request.dtype, request.progress)?;
    let Facts { dims, card, skip, .. } = source.facts();
    Ok(Imported {
        from: from.to_path_buf(),
        out: out.to_path_buf(),
        format,
        model_kind: card.model_kind.clone(),
        activation,
        skip: *skip,
        layers: dims.layers,
        d_model: dims.d_model,
        d_features: dims.d_features,
        hooks: [card.feature_input_hook.clone(), card.feature_output_hook.clone()],
        model: model.map(|model| model.info().name.clone()),
        files: written.files,
        bytes: written.bytes,
    })
}

/// Where it reads and writes: as asked for, else as its folder says.
fn name_hooks(card: &mut Card, request: &ImportRequest<'_>) -> Result<()> {
    if let Some([input, output]) = request.hooks {
        (card.feature_input_hook, card.feature_output_hook) = (input.to_string(), output.to_string());
    }
    if card.feature_input_hook.is_empty() || card.feature_output_hook.is_empty() {
        return Err(Error::Invalid(format!(
            "`{}` does not say where it reads and writes in a block; name both, such as `--hooks mlp.hook_in,hook_mlp_out`",
            request.from.display()
        )));
    }
    check_hooks(card.feature_input_hook.parse()?, card.feature_output_hook.parse()?)
}

/// The plugins that it is read with.
fn plugins(registry: &Registry, from: &Path, facts: &Facts) -> Result<(Spec, Spec)> {
    if let Some(known) = &facts.card.circuitlab {
        registry.require(&format!("transcoder `{}`", from.display()), &known.providers)?;
        return Ok((known.transcoder.clone(), known.activation.clone()));
    }
    let transcoder = saved::transcoder_of(registry, from, &facts.card.model_kind, facts.skip)?;
    let activation = saved::activation_of(registry, from, &facts.card, facts.thresholds)?;
    Ok((registry.complete::<dyn Transcoder>(&transcoder)?, registry.complete::<dyn SparsityActivation>(&activation)?))
}

fn open_model(request: &ImportRequest<'_>, folder: &Path) -> Result<Box<dyn LanguageModel>> {
    let source = ModelSource { device: DeviceName::default(), ..ModelSource::new(folder) };
    model::open(request.registry, &source)
}

/// Compares it with the model, and records which one it is of.
fn provenance(source: &mut dyn Source, registry: &Registry, from: &Path, model: &dyn LanguageModel, specs: [&Spec; 2]) -> Result<()> {
    let info = model.info();
    let facts = source.facts_mut();
    saved::check_fits(from, facts.dims, &facts.card, info)?;
    let [transcoder, activation] = specs;
    if facts.card.model_name.is_empty() {
        facts.card.model_name.clone_from(&info.name);
    }
    if facts.card.circuitlab.is_some() {
        return Ok(());
    }
    let [input_scales, target_scales] = facts.scales.clone();
    facts.card.circuitlab = Some(Provenance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        transcoder: transcoder.clone(),
        activation: activation.clone(),
        trained_with: None,
        model_family: info.family.clone(),
        model_fingerprint: info.fingerprint.clone(),
        drop_special_rows: true,
        input_scales,
        target_scales,
        providers: registry.providers([(Kind::Transcoder, transcoder.name.as_str()), (Kind::Activation, activation.name.as_str())])?,
        steps: 0,
        rows: 0,
    });
    Ok(())
}
