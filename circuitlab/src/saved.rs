//! Saved transcoders: a folder in circuit-tracer's layout, whose `config.yaml` says what it was trained on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::plugin::Provider;
use circuitlab_core::sparsity::has_jump_form;
use circuitlab_core::{
    BlockHook, Dims, Error as CoreError, Kind, ModelInfo, Parameters, Registry, Saving, SparsityActivation, Spec, Transcoder, files,
};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result};

/// The file that makes a folder a transcoder. It is written last.
pub const CARD: &str = "config.yaml";

/// `config.yaml`: the keys that circuit-tracer reads, and what this project knows beyond them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// `cross_layer_transcoder` or `transcoder_set`.
    pub model_kind: String,
    /// The language model's name.
    #[serde(default)]
    pub model_name: String,
    /// Where inputs are read, below `blocks.{layer}.`.
    pub feature_input_hook: String,
    /// Where outputs are written, below `blocks.{layer}.`.
    pub feature_output_hook: String,
    /// circuit-tracer's name of the activation, which per-layer transcoders may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<String>,
    /// Active features of a row, where the activation is circuit-tracer's `topk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<u64>,
    /// What graphs call it; other tools find its features' pages by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// Where each layer's file is, in order, where the folder does not hold them by circuit-tracer's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcoders: Option<Vec<String>>,
    /// What other tools do not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuitlab: Option<Provenance>,
    /// What this crate does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A transcoder's name in graphs, or one for each layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scan {
    /// Of the whole.
    One(String),
    /// Of each layer.
    Many(Vec<String>),
}

/// Where a transcoder comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this crate that wrote the folder.
    pub version: String,
    /// The transcoder, by its registered name.
    pub transcoder: Spec,
    /// The activation that the folder is read with, by its registered name and with all settings.
    pub activation: Spec,
    /// The activation that it was trained with, where it was saved as the JumpReLU that it is equal to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_with: Option<Spec>,
    /// The language model's family.
    pub model_family: String,
    /// Tells the language model's weights from others.
    pub model_fingerprint: String,
    /// Whether rows of special tokens were left out of training.
    #[serde(default = "yes")]
    pub drop_special_rows: bool,
    /// What raw inputs of each layer were multiplied by in training; folded into the saved weights.
    pub input_scales: Vec<f64>,
    /// What raw outputs of each layer were multiplied by in training; folded into the saved weights.
    pub target_scales: Vec<f64>,
    /// Who provided both.
    #[serde(default)]
    pub providers: Vec<Provider>,
    /// Steps trained.
    pub steps: u64,
    /// Rows trained on.
    pub rows: u64,
}

/// What a folder says of its activation.
#[derive(Debug, Clone, PartialEq)]
pub struct SavedActivation {
    /// What the folder is read with.
    pub spec: Spec,
    /// What it was trained with, where that is another.
    pub trained_with: Option<Spec>,
}

impl SavedActivation {
    /// Of a run's activation: one that has a jump form is saved as that `jumprelu`, any other as itself.
    ///
    /// # Errors
    /// No plugin `jumprelu`, and what the activation returns.
    pub fn of(registry: &Registry, spec: &Spec, activation: &dyn SparsityActivation) -> Result<Self> {
        let spec = registry.complete::<dyn SparsityActivation>(spec)?;
        if !has_jump_form(activation)? {
            return Ok(Self { spec, trained_with: None });
        }
        Ok(Self { spec: registry.complete::<dyn SparsityActivation>(&direct_jumprelu())?, trained_with: Some(spec) })
    }

    /// circuit-tracer's keys `activation` and `k`. Of what else it reads it learns from the tensors.
    pub fn keys(&self) -> (Option<String>, Option<u64>) {
        match self.spec.name.as_str() {
            "topk" => (Some("topk".to_owned()), self.spec.settings.get("k").and_then(serde_json::Value::as_u64)),
            _ => (None, None),
        }
    }
}

/// The activation of a folder with thresholds, which may be zero or below: a logarithm has no room for that.
fn direct_jumprelu() -> Spec {
    Spec::named("jumprelu").with("parameterisation", "direct")
}

fn yes() -> bool {
    true
}

/// A transcoder that takes and gives raw activations.
#[derive(Debug)]
pub struct SavedTranscoder {
    /// Where it was read from.
    pub folder: PathBuf,
    /// What is known of it.
    pub card: Card,
    /// Its sizes.
    pub dims: Dims,
    /// Its parameters.
    pub params: Parameters,
    /// What they are.
    pub transcoder: Box<dyn Transcoder>,
    /// Which features are active.
    pub activation: Box<dyn SparsityActivation>,
}

impl SavedTranscoder {
    /// Reads a folder that this crate or circuit-tracer wrote.
    ///
    /// # Errors
    /// A folder without a readable `config.yaml`, plugins that are not there, and files that do not fit together.
    pub fn open(registry: &Registry, folder: &Path, device: DeviceName, dtype: FloatKind) -> Result<Self> {
        let card = read_card(folder)?;
        if card.transcoders.is_some() {
            let message = "it lists its files under `transcoders`; `circuitlab import` makes a folder of them that can be used";
            return Err(CoreError::format(folder.join(CARD), message).into());
        }
        if let Some(known) = &card.circuitlab {
            registry.require(&format!("transcoder `{}`", folder.display()), &known.providers)?;
        }
        let transcoder = match &card.circuitlab {
            Some(known) => registry.build::<dyn Transcoder>(&known.transcoder)?,
            None => by_model_kind(registry, folder, &card.model_kind)?,
        };
        let activation = match &card.circuitlab {
            Some(known) => known.activation.clone(),
            None => activation_of(registry, folder, &card, transcoder.has_thresholds(folder)?)?,
        };
        let activation = registry.build::<dyn SparsityActivation>(&activation)?;
        let (dims, params) = transcoder.load(folder, &*activation, dtype.into(), device.0)?;
        Ok(Self { folder: folder.to_path_buf(), card, dims, params, transcoder, activation })
    }

    /// The activations of one source layer.
    ///
    /// # Shapes
    /// `inputs: [rows, d_model]`, raw; gives `[rows, d_features]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn encode(&self, source: usize, inputs: &Tensor) -> Result<Tensor> {
        Ok(self.transcoder.encode(&self.params, &*self.activation, source, inputs)?)
    }

    /// The reconstruction of one target layer from the activations of all source layers up to it, and from its own inputs, which a linear
    /// skip is taken of.
    ///
    /// # Shapes
    /// `acts[s]: [rows, d_features]`; `inputs: [rows, d_model]`, raw; gives `[rows, d_model]`, raw.
    ///
    /// # Errors
    /// Shapes that do not fit, or too few source layers.
    pub fn decode(&self, acts: &[Tensor], inputs: &Tensor, target: usize) -> Result<Tensor> {
        Ok(self.transcoder.decode(&self.params, acts, inputs, target)?)
    }

    /// The two places in a block that it reads and writes.
    ///
    /// # Errors
    /// A hook name that is unknown, and hooks that no transcoder can stand between.
    pub fn hooks(&self) -> Result<(BlockHook, BlockHook)> {
        let read =
            |name: &str| name.parse().map_err(|error: CoreError| Error::from(CoreError::format(self.folder.join(CARD), error.to_string())));
        Ok((read(&self.card.feature_input_hook)?, read(&self.card.feature_output_hook)?))
    }

    /// Checks that it belongs to a language model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the first thing that differs.
    pub fn check_model(&self, model: &ModelInfo) -> Result<()> {
        check_fits(&self.folder, self.dims, &self.card, model)
    }
}

/// Checks that a transcoder belongs to a language model.
pub(crate) fn check_fits(folder: &Path, dims: Dims, card: &Card, model: &ModelInfo) -> Result<()> {
    let what = |of: &str| format!("transcoder `{}` and model `{}` differ in {of}", folder.display(), model.name);
    if dims.layers != model.layers {
        return Err(Error::mismatch(what("layers"), dims.layers, model.layers));
    }
    if dims.d_model != model.d_model {
        return Err(Error::mismatch(what("d_model"), dims.d_model, model.d_model));
    }
    match &card.circuitlab {
        Some(known) if known.model_fingerprint != model.fingerprint => {
            Err(Error::mismatch(what("weights (fingerprint)"), &known.model_fingerprint, &model.fingerprint))
        }
        _ => Ok(()),
    }
}

/// Writes a transcoder that this process has all of into an existing folder, `config.yaml` last.
///
/// # Errors
/// What the file system returns.
pub fn write(folder: &Path, card: &Card, saving: &Saving<'_>) -> Result<()> {
    saving.into_folder(folder)?;
    write_card(folder, card)
}

/// Writes `config.yaml`, which makes a folder whose tensor files are there a transcoder.
///
/// # Errors
/// What the file system returns.
pub(crate) fn write_card(folder: &Path, card: &Card) -> Result<()> {
    let path = folder.join(CARD);
    let text = serde_saphyr::to_string(card).map_err(|error| CoreError::format(&path, error.to_string()))?;
    Ok(files::write_atomic(&path, |out| out.write_all(text.as_bytes()))?)
}

/// Reads `config.yaml`.
///
/// # Errors
/// A file that is missing or damaged.
pub fn read_card(folder: &Path) -> Result<Card> {
    let path = folder.join(CARD);
    if folder.to_string_lossy().starts_with("hf:") {
        let message = "transcoders are not fetched; download the repository, and name its folder";
        return Err(CoreError::format(folder, message).into());
    }
    if !folder.is_dir() {
        return Err(CoreError::format(folder, "there is no such folder; expected that of a transcoder").into());
    }
    if !path.exists() {
        return Err(CoreError::format(
            folder,
            format!("no transcoder: it holds no `{CARD}`; a training run's is in its folder `final` or `checkpoints/step-..`"),
        )
        .into());
    }
    let text = fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
    serde_saphyr::from_str(&text).map_err(|error| {
        let text = error.to_string();
        CoreError::format(&path, text.lines().next().unwrap_or("it cannot be read").to_owned()).into()
    })
}

/// The activation that a folder is read with. circuit-tracer's `topk` keeps negative pre-activations too.
pub(crate) fn activation_of(registry: &Registry, folder: &Path, card: &Card, thresholds: bool) -> Result<Spec> {
    match card.activation.as_deref() {
        None | Some("jump_relu" | "jumprelu") if thresholds => Ok(direct_jumprelu()),
        None | Some("relu") => Ok(Spec::named("relu")),
        Some("topk") => {
            let message = "`activation: topk` needs the number of active features of a row, such as `k: 32`";
            let k = card.k.ok_or_else(|| CoreError::format(folder.join(CARD), message))?;
            Ok(Spec::named("topk").with("k", k).with("positive", false))
        }
        Some(other) if registry.knows(Kind::Activation, other) => Ok(Spec::named(other)),
        Some(other) => {
            let error = CoreError::unknown(Kind::Activation.name(), other, registry.names(Kind::Activation));
            Err(CoreError::format(folder.join(CARD), error.to_string()).into())
        }
    }
}

/// Checks that a transcoder can read at one place of a block and write at another: both hold a row of `d_model` numbers for each
/// position, and the input comes first.
///
/// # Errors
/// Places of another shape or order.
pub fn check_hooks(input: BlockHook, output: BlockHook) -> Result<()> {
    let rows = |hook: BlockHook| {
        use BlockHook::{AttnOut, Ln2Normalized, MlpIn, MlpOut, MlpRawOut, ResidMid, ResidPost, ResidPre};
        matches!(hook, ResidPre | AttnOut | ResidMid | Ln2Normalized | MlpIn | MlpRawOut | MlpOut | ResidPost)
    };
    if let Some(hook) = [input, output].into_iter().find(|hook| !rows(*hook)) {
        return Err(Error::Invalid(format!(
            "`{hook}` does not hold a row of d_model numbers; expected hooks such as `mlp.hook_in` and `hook_mlp_out`"
        )));
    }
    if input >= output {
        return Err(Error::Invalid(format!(
            "`{input}` does not come before `{output}`; expected hooks such as `mlp.hook_in` and `hook_mlp_out`"
        )));
    }
    Ok(())
}

fn by_model_kind(registry: &Registry, folder: &Path, model_kind: &str) -> Result<Box<dyn Transcoder>> {
    let plain = registry.build::<dyn Transcoder>(&transcoder_of(registry, folder, model_kind, false)?)?;
    if !plain.has_skip(folder)? {
        return Ok(plain);
    }
    Ok(registry.build::<dyn Transcoder>(&transcoder_of(registry, folder, model_kind, true)?)?)
}

/// The transcoder of a `model_kind`, with or without a linear skip.
pub(crate) fn transcoder_of(registry: &Registry, folder: &Path, model_kind: &str, skip: bool) -> Result<Spec> {
    let mut known = Vec::new();
    for name in registry.names(Kind::Transcoder) {
        let spec = Spec::named(name);
        let transcoder = registry.build::<dyn Transcoder>(&spec)?;
        if transcoder.model_kind() == model_kind {
            return Ok(if skip { spec.with("skip", true) } else { spec });
        }
        known.push(transcoder.model_kind().to_owned());
    }
    Err(CoreError::format(folder.join(CARD), format!("unknown `model_kind: {model_kind}`; known: {}", known.join(", "))).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a card of somebody else's")]
    fn a_card_is_written_with_all_that_was_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = "model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\nscan: some/where//l@main\n\
                    transcoders:\n- hf://a/b/layer_0.npz?revision=x\n- layer_1.npz\nrepo_id: a/b\nrevision: null\nsizes:\n  wide: [1, 2.5, true]\n";
        fs::write(folder.path().join(CARD), text).expect("writes");
        let card = read_card(folder.path()).expect("reads");
        assert_eq!(card.scan, Some(Scan::One("some/where//l@main".to_owned())));
        assert_eq!(card.transcoders.as_deref().map(<[String]>::len), Some(2));
        assert_eq!(card.other["sizes"], serde_json::json!({ "wide": [1, 2.5, true] }));
        let again = folder.path().join("again");
        fs::create_dir(&again).expect("a folder");
        write_card(&again, &card).expect("writes");
        assert_eq!(read_card(&again).expect("reads"), card);
        fs::write(folder.path().join(CARD), text.replace("some/where//l@main", "[a, b]")).expect("writes");
        let many = Scan::Many(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(read_card(folder.path()).expect("reads").scan, Some(many));
    }
}
