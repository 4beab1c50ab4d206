//! Language models as the engine uses them: opened from a folder by family, and read out through a [`Capture`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::error::nearest;
use circuitlab_core::plugin::Kind;
use circuitlab_core::{Action, BlockHook, HookPoint, HookVisitor, LanguageModel, ModelSource, Registry, Spec};
use serde_json::Value;
use tch::{Device, Tensor};

use crate::{Error, Result};

/// Opens a Hugging Face folder with the plugin whose name is the `model_type` in its `config.json`.
///
/// # Errors
/// A folder or `config.json` that is not there, a config that is no JSON or names no known family, and what the family's
/// plugin refuses.
pub fn open(registry: &Registry, folder: &Path, device: DeviceName, dtype: FloatKind) -> Result<Box<dyn LanguageModel>> {
    let family = family(registry, folder)?;
    let source = ModelSource { path: folder.to_path_buf(), device, dtype };
    let Ok(Value::Object(settings)) = serde_json::to_value(source) else {
        return Err(Error::Invalid(format!("the model's path `{}` is no UTF-8", folder.display())));
    };
    Ok(registry.build::<dyn LanguageModel>(&Spec { name: family, settings })?)
}

/// The registered family that a folder's `config.json` names.
fn family(registry: &Registry, folder: &Path) -> Result<String> {
    if !folder.is_dir() {
        return Err(Error::Invalid(format!("model `{}`: there is no such folder", folder.display())));
    }
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).map_err(circuitlab_core::Error::io("read", &path))?;
    let wrong = |message: String| Error::from(circuitlab_core::Error::format(&path, message));
    let config: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("not valid JSON: {error}")))?;
    let known = registry.names(Kind::Model);
    let Some(name) = config.get("model_type").and_then(Value::as_str) else {
        return Err(wrong(format!("expected a `model_type` that is a name; known: {}", known.join(", "))));
    };
    if registry.knows(Kind::Model, name) {
        return Ok(name.to_owned());
    }
    let hint = nearest(name, known.iter().map(String::as_str)).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
    Err(wrong(format!("unknown model family `{name}`{hint}; known: {}", known.join(", "))))
}

/// Keeps the values of chosen hook points of one forward pass.
///
/// Values are kept as the model shows them: on its device, in its type, and with their gradient history where there is one.
#[derive(Debug, Default)]
pub struct Capture {
    wanted: BTreeSet<HookPoint>,
    values: BTreeMap<HookPoint, Tensor>,
    stopping: bool,
}

impl Capture {
    /// Wants these places and no others.
    pub fn new(points: impl IntoIterator<Item = HookPoint>) -> Self {
        Self { wanted: points.into_iter().collect(), values: BTreeMap::new(), stopping: false }
    }

    /// The same, and ends the forward pass once it has seen every place, so that nothing after the last one is computed.
    #[must_use]
    pub fn stopping(self) -> Self {
        Self { stopping: true, ..self }
    }

    /// Takes a captured value out.
    ///
    /// # Errors
    /// A place that was not asked for, that the model does not have, or that was taken before.
    pub fn take(&mut self, point: HookPoint) -> Result<Tensor> {
        let why = if self.wanted.contains(&point) { "the model did not reach it, or it was taken before" } else { "it was not asked for" };
        self.values.remove(&point).ok_or_else(|| Error::Invalid(format!("no value was captured at `{point}`: {why}")))
    }
}

impl HookVisitor for Capture {
    fn wants(&self, point: HookPoint) -> bool {
        self.wanted.contains(&point)
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> circuitlab_core::Result<Action> {
        self.values.insert(point, value.shallow_clone());
        let done = self.stopping && self.values.len() == self.wanted.len();
        Ok(if done { Action::Stop } else { Action::Continue })
    }
}

/// The places that [`activations`] reads in each block, and what it calls them.
const KEYS: [(&str, BlockHook); 5] = [
    ("resid_mid", BlockHook::ResidMid),
    ("mlp_in", BlockHook::MlpIn),
    ("mlp_out", BlockHook::MlpOut),
    ("resid_post", BlockHook::ResidPost),
    ("attn_pattern", BlockHook::Pattern),
];

/// What a model computes for some tokens, by name, on the CPU: `tokens`, `logits`, and for every block `l` its
/// `resid_mid.{l}`, `mlp_in.{l}`, `mlp_out.{l}`, `resid_post.{l}` and `attn_pattern.{l}`.
///
/// # Shapes
/// `tokens: [batch, position]`, int64; `logits: [batch, position, vocabulary]`; patterns `[batch, head, query, key]`; the
/// others `[batch, position, d_model]`.
///
/// # Errors
/// Tokens that the model refuses.
pub fn activations(model: &dyn LanguageModel, tokens: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let places: Vec<(String, HookPoint)> = (0..model.info().layers)
        .flat_map(|layer| KEYS.map(|(name, hook)| (format!("{name}.{layer}"), HookPoint::block(layer, hook))))
        .collect();
    let mut capture = Capture::new(places.iter().map(|(_, point)| *point));
    let logits = tch::no_grad(|| model.forward(tokens, &mut capture))?
        .ok_or_else(|| Error::Invalid(format!("model `{}` gave no logits", model.info().name)))?;
    let mut named = vec![("tokens".to_owned(), tokens.f_to_device(Device::Cpu)?), ("logits".to_owned(), logits.f_to_device(Device::Cpu)?)];
    for (name, point) in places {
        named.push((name, capture.take(point)?.f_to_device(Device::Cpu)?));
    }
    Ok(named)
}
