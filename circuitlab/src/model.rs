//! Language models as the engine uses them: opened from a folder by family, and read out through a [`Capture`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

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
pub fn open(registry: &Registry, source: &ModelSource) -> Result<Box<dyn LanguageModel>> {
    let family = family(registry, &source.path)?;
    let Ok(Value::Object(settings)) = serde_json::to_value(source) else {
        return Err(Error::Invalid(format!("the model's path `{}` is no UTF-8", source.path.display())));
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

#[cfg(test)]
mod tests {
    use circuitlab_core::files::write_atomic;
    use circuitlab_core::tensors::TensorFile;
    use tch::Kind as TensorKind;

    use super::*;

    fn registry() -> Registry {
        circuitlab_plugins::link();
        Registry::linked().expect("no name twice")
    }

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
    }

    fn opened(folder: &Path) -> Result<Box<dyn LanguageModel>> {
        open(&registry(), &ModelSource::new(folder))
    }

    #[test]
    fn activations_are_the_recorded_ones() {
        for name in ["llama", "gpt2"] {
            let model = opened(&fixture(name)).expect("opens");
            let expected = TensorFile::open(&fixture(name).join("expected.safetensors")).expect("recorded");
            let tokens = expected.tensor("tokens", None, Device::Cpu).expect("recorded");
            let named = activations(&*model, &tokens).expect("runs");
            assert_eq!(named.len(), expected.names().expect("names").len());
            for (key, got) in named {
                let want = expected.tensor(&key, None, Device::Cpu).expect("recorded");
                assert!((want - got).abs().max().double_value(&[]) < 1e-5, "{name}, {key}");
            }
        }
    }

    #[test]
    fn a_capture_keeps_what_was_asked_and_can_end_the_pass() {
        let model = opened(&fixture("llama")).expect("opens");
        let tokens = Tensor::zeros([1, 3], (TensorKind::Int64, Device::Cpu));
        let points = [HookPoint::block(0, BlockHook::MlpIn), HookPoint::block(1, BlockHook::MlpOut)];
        let mut capture = Capture::new(points).stopping();
        assert!(model.forward(&tokens, &mut capture).expect("runs").is_none(), "it stops at the last place");
        for point in points {
            assert_eq!(capture.take(point).expect("captured").size(), [1, 3, 48]);
        }
        let error = capture.take(points[0]).expect_err("taken before").to_string();
        assert!(error.contains("blocks.0.mlp.hook_in") && error.contains("taken before"), "{error}");
        assert!(capture.take(HookPoint::Embed).expect_err("not wanted").to_string().contains("not asked for"));

        let mut beyond = Capture::new([points[0], HookPoint::block(7, BlockHook::MlpIn)]).stopping();
        assert!(model.forward(&tokens, &mut beyond).expect("runs").is_some(), "a place that is never reached stops nothing");
        assert!(beyond.take(HookPoint::block(7, BlockHook::MlpIn)).is_err());
    }

    #[test]
    fn folders_that_hold_no_known_model_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let says = |text: Option<&str>, words: &[&str]| {
            if let Some(text) = text {
                write_atomic(&folder.path().join("config.json"), |out| out.write_all(text.as_bytes())).expect("writes");
            }
            let error = opened(folder.path()).expect_err("no model").to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        says(None, &["cannot read", "config.json"]);
        says(Some("{"), &["config.json", "not valid JSON"]);
        says(Some("[]"), &["`model_type`", "gemma2, gemma3_text, gpt2, gpt_neox, llama"]);
        says(
            Some(r#"{"model_type": "bert"}"#),
            &["config.json`: unknown model family `bert`; known: gemma2, gemma3_text, gpt2, gpt_neox, llama"],
        );
        says(Some(r#"{"model_type": "lama"}"#), &["did you mean `llama`"]);
        says(Some(r#"{"model_type": "llama"}"#), &["config.json", "missing field"]);
        let error = opened(&folder.path().join("nowhere")).expect_err("no folder").to_string();
        assert!(error.contains("nowhere") && error.contains("no such folder"), "{error}");
    }
}
