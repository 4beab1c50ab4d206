//! Writing transcoders, a piece at a time, in whatever layout.

use std::fs;
use std::ops::Range;
use std::path::Path;

use circuitlab_core::config::FloatKind;
use circuitlab_core::tensors::{FileLayout, FolderWriter, PIECE_BYTES, TensorLayout};
use circuitlab_core::{BlockHook, Dims, Error as CoreError, Parameters, Registry, Scales, SparsityActivation, Spec, Transcoder, files};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::circuit_tracer;
use super::clt_forge::{self, CONFIG, FACTORS_IN, FACTORS_OUT, WEIGHTS};
use super::npz::NpzWriter;
use super::source::{Facts, LayerParts, Source, finite};
use crate::saved::{self, CARD, Card};
use crate::{Error, Progress, Result};

/// What to write.
pub(crate) enum Target<'a> {
    /// A folder of our own.
    Own {
        /// The plugins.
        registry: &'a Registry,
        /// What it is.
        transcoder: &'a Spec,
        /// Which features are active.
        activation: &'a Spec,
    },
    /// Gemma Scope's archives.
    GemmaScope,
    /// Gemma Scope 2's files.
    GemmaScope2,
    /// CLT-Forge's checkpoint.
    CltForge,
}

/// What was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// Writes a folder of our own as another tool has it.
pub(crate) fn convert(from: &Path, target: &Target<'_>, out: &Path, dtype: Option<FloatKind>, progress: &dyn Progress) -> Result<Written> {
    write(&*circuit_tracer::open(from)?, target, from, out, dtype, progress)
}

/// Writes a new folder, which is there when all of it is.
pub(super) fn write(
    source: &dyn Source,
    target: &Target<'_>,
    from: &Path,
    out: &Path,
    dtype: Option<FloatKind>,
    progress: &dyn Progress,
) -> Result<Written> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: out.to_path_buf(), hint: "choose another --out".to_owned() });
    }
    let facts = source.facts();
    let kind = dtype.map_or(facts.kind, Kind::from);
    holds(target, from, facts, kind)?;
    progress.begin("layers", facts.dims.layers as u64, "layers");
    let mut written = Written { files: 0, bytes: 0 };
    files::write_folder(out, |part| -> Result<()> {
        let to = Folder { source, facts, part, kind, progress };
        match target {
            Target::Own { registry, transcoder, activation } => to.own(registry, transcoder, activation)?,
            Target::GemmaScope => to.archives()?,
            Target::GemmaScope2 => to.second()?,
            Target::CltForge => to.checkpoint()?,
        }
        count(part, &mut written)
    })
    .map_err(|error| named(from, error))?;
    progress.end();
    Ok(written)
}

/// Says which folder numbers that are none were in.
fn named(from: &Path, error: Error) -> Error {
    match error {
        Error::Invalid(message) => CoreError::format(from, message).into(),
        other => other,
    }
}

/// Counts tensor files and their bytes.
fn count(folder: &Path, written: &mut Written) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let path = entry.map_err(CoreError::io("read", folder))?.path();
        if path.is_dir() {
            count(&path, written)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors" || extension == "npz") {
            written.files += 1;
            written.bytes += fs::metadata(&path).map_err(CoreError::io("read", &path))?.len();
        }
    }
    Ok(())
}

/// Whether a format can hold a transcoder.
fn holds(target: &Target<'_>, from: &Path, facts: &Facts, kind: Kind) -> Result<()> {
    let (name, crosses, skips) = match target {
        Target::Own { .. } => return Ok(()),
        Target::GemmaScope => ("gemma-scope", false, false),
        Target::GemmaScope2 => ("gemma-scope-2", true, true),
        Target::CltForge => ("clt-forge", true, false),
    };
    let refuse = |what: &str| Err(CoreError::format(from, format!("{what}, which `--format {name}` cannot hold")).into());
    let activation = facts.card.circuitlab.as_ref().map(|known| known.activation.name.as_str()).or(facts.card.activation.as_deref());
    match activation {
        None | Some("relu" | "jumprelu" | "jump_relu") => {}
        Some(other) => return refuse(&format!("its activation is `{other}`")),
    }
    if facts.crosses() && !crosses {
        return refuse("its features write to several layers");
    }
    if facts.skip && !skips {
        return refuse("it has a linear skip");
    }
    if matches!(target, Target::GemmaScope) && kind == Kind::BFloat16 {
        return refuse("its numbers are of type bf16 (`--dtype f32` holds the same ones)");
    }
    let hooks = [&facts.card.feature_input_hook, &facts.card.feature_output_hook];
    if matches!(target, Target::CltForge) && hooks != [BlockHook::Ln2Normalized.name(), BlockHook::MlpOut.name()] {
        return refuse(&format!("it reads `{}` and writes `{}`, and not `ln2.hook_normalized` and `hook_mlp_out`", hooks[0], hooks[1]));
    }
    Ok(())
}

/// A folder that is written.
struct Folder<'a> {
    source: &'a dyn Source,
    facts: &'a Facts,
    part: &'a Path,
    kind: Kind,
    progress: &'a dyn Progress,
}

/// A tensor in another type.
fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(tensor.f_to_kind(kind).map_err(CoreError::from)?)
}

/// Places that numbers of so many bytes each are taken in.
fn pieces(places: usize, bytes: usize) -> impl Iterator<Item = Range<i64>> {
    let at_a_time = (PIECE_BYTES / bytes.max(1)).max(1);
    (0..places).step_by(at_a_time).map(move |first| first as i64..(first + at_a_time).min(places) as i64)
}

impl Folder<'_> {
    /// Layers in order.
    fn layers(&self, mut each: impl FnMut(usize, LayerParts) -> Result<()>) -> Result<()> {
        for layer in 0..self.facts.dims.layers {
            each(layer, self.source.layer(layer)?)?;
            self.progress.at(layer as u64 + 1, "");
        }
        Ok(())
    }

    /// Bytes of the longest type that one feature's numbers have.
    fn feature_bytes(&self, layer: usize) -> usize {
        (1 + self.facts.targets(layer).len()) * self.facts.dims.d_model * 8
    }

    fn own(&self, registry: &Registry, transcoder: &Spec, activation: &Spec) -> Result<()> {
        let transcoder = registry.build::<dyn Transcoder>(transcoder)?;
        let activation = registry.build::<dyn SparsityActivation>(activation)?;
        let dims = self.facts.dims;
        let layout = transcoder.files(dims, &*activation, self.kind)?;
        layout.iter().try_for_each(|file| file.create(self.part))?;
        let mut writer = FolderWriter::open(self.part, &layout)?;
        let scales = Scales { inputs: &self.facts.scales[0], targets: &self.facts.scales[1] };
        self.layers(|layer, parts| {
            for features in pieces(dims.d_features, self.feature_bytes(layer)) {
                let params = self.params(&*transcoder, &*activation, layer, &parts, &features)?;
                for saved in transcoder.saved(dims, layer, &params, &*activation, scales)? {
                    let rows = cast(&saved.rows, self.kind)?;
                    if saved.per_feature {
                        writer.rows(&saved.file, &saved.tensor, features.start, &rows)?;
                    } else if features.start == 0 {
                        writer.rows(&saved.file, &saved.tensor, 0, &rows)?;
                    }
                }
            }
            Ok(())
        })?;
        writer.finish()?;
        saved::write_card(self.part, &self.facts.card)
    }

    /// Some features of a layer as the transcoder's own parameters, in the type that they are computed with.
    fn params(
        &self,
        transcoder: &dyn Transcoder,
        activation: &dyn SparsityActivation,
        layer: usize,
        parts: &LayerParts,
        features: &Range<i64>,
    ) -> Result<Parameters> {
        let kind = if self.facts.kind == Kind::Double { Kind::Double } else { Kind::Float };
        let count = features.end - features.start;
        let some = |all: &Tensor| all.f_narrow(0, features.start, count).map_err(CoreError::from);
        let mut own = activation.params_with_thresholds(parts.thresholds.as_ref().map(some).transpose()?.as_ref())?.into_iter();
        let (mut specs, mut values) = (Vec::new(), Vec::new());
        for mut spec in transcoder.parameters(self.facts.dims, activation)?.into_iter().filter(|spec| spec.layer == layer) {
            let name = spec.name.strip_suffix(&format!("_{layer}")).unwrap_or(&spec.name).to_owned();
            let value = match name.as_str() {
                "W_enc" => finite(layer, "W_enc", parts.w_enc.rows(features.clone())?)?,
                "W_dec" => finite(layer, "W_dec", parts.w_dec.rows(features.clone())?)?,
                "b_enc" => some(&parts.b_enc)?,
                "b_dec" => parts.b_dec.shallow_clone(),
                "W_skip" => {
                    parts.skip.as_ref().map(Tensor::shallow_clone).ok_or_else(|| Error::Invalid(format!("layer {layer} has no skip")))?
                }
                _ => own.next().ok_or_else(|| Error::Invalid(format!("layer {layer} has no `{}`", spec.name)))?,
            };
            if spec.per_feature {
                spec.shape[0] = count;
            }
            specs.push(spec);
            values.push(cast(&value, kind)?);
        }
        Ok(Parameters::new(specs, values)?)
    }

    /// `config.yaml`, without what holds for our own layout alone.
    fn card(&self, transcoders: Vec<String>) -> Result<()> {
        let card = Card { circuitlab: None, activation: None, k: None, transcoders: Some(transcoders), ..self.facts.card.clone() };
        saved::write_card(self.part, &card)
    }

    /// Thresholds as the formats have them that know no ReLU.
    fn thresholds(&self, parts: &LayerParts) -> Result<Tensor> {
        match &parts.thresholds {
            Some(thresholds) => Ok(thresholds.shallow_clone()),
            None => Ok(Tensor::f_zeros([self.facts.dims.d_features as i64], (Kind::Double, Device::Cpu)).map_err(CoreError::from)?),
        }
    }

    /// Encoder columns `[places, d_features]` of `d_model`, a piece at a time.
    fn encoder_columns(&self, layer: usize, parts: &LayerParts, mut each: impl FnMut(Range<i64>, &Tensor) -> Result<()>) -> Result<()> {
        for places in pieces(self.facts.dims.d_model, self.facts.dims.d_features * 8) {
            let columns = finite(layer, "W_enc", parts.w_enc.columns(&places)?)?;
            let turned = columns.f_tr().and_then(|columns| columns.f_contiguous()).map_err(CoreError::from)?;
            each(places, &cast(&turned, self.kind)?)?;
        }
        Ok(())
    }

    /// Decoder rows `[features, targets, d_model]`, a piece at a time.
    fn decoder_rows(&self, layer: usize, parts: &LayerParts, mut each: impl FnMut(Range<i64>, &Tensor) -> Result<()>) -> Result<()> {
        for features in pieces(self.facts.dims.d_features, self.feature_bytes(layer)) {
            let rows = finite(layer, "W_dec", parts.w_dec.rows(features.clone())?)?;
            each(features, &cast(&rows, self.kind)?)?;
        }
        Ok(())
    }

    fn archives(&self) -> Result<()> {
        let Dims { layers, d_model, d_features } = self.facts.dims;
        let [d_model, features] = [d_model as i64, d_features as i64];
        let name = |layer: usize| format!("layer_{layer}/params.npz");
        self.layers(|layer, parts| {
            let path = self.part.join(name(layer));
            let folder = path.parent().unwrap_or(self.part);
            fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
            let mut npz = NpzWriter::create(&path)?;
            npz.begin("W_enc", &[d_model, features], self.kind)?;
            self.encoder_columns(layer, &parts, |_, columns| npz.rows(columns))?;
            npz.begin("W_dec", &[features, d_model], self.kind)?;
            self.decoder_rows(layer, &parts, |_, rows| npz.rows(rows))?;
            for (name, vector) in [("b_enc", &parts.b_enc), ("b_dec", &parts.b_dec), ("threshold", &self.thresholds(&parts)?)] {
                npz.begin(name, &vector.size(), self.kind)?;
                npz.rows(&cast(vector, self.kind)?)?;
            }
            npz.finish()
        })?;
        self.card((0..layers).map(name).collect())
    }

    fn second(&self) -> Result<()> {
        let Dims { layers, d_model, d_features } = self.facts.dims;
        let [d_model, features] = [d_model as i64, d_features as i64];
        let name = |layer: usize| {
            if self.facts.crosses() { format!("params_layer_{layer}.safetensors") } else { format!("layer_{layer}/params.safetensors") }
        };
        let decoder = if self.facts.crosses() { vec![features, layers as i64, d_model] } else { vec![features, d_model] };
        self.layers(|layer, parts| {
            let file = self.part.join(name(layer));
            let folder = file.parent().unwrap_or(self.part);
            fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
            let tensor = |name: &str, shape: &[i64]| TensorLayout::new(name, shape, self.kind);
            let mut tensors = vec![tensor("w_enc", &[d_model, features]), tensor("w_dec", &decoder), tensor("b_enc", &[features])];
            tensors.extend([tensor("b_dec", &[d_model]), tensor("threshold", &[features])]);
            tensors.extend(parts.skip.is_some().then(|| tensor("affine_skip_connection", &[d_model, d_model])));
            let layout = FileLayout::new(name(layer), tensors);
            layout.create(self.part)?;
            let mut writer = layout.open(self.part)?;
            self.encoder_columns(layer, &parts, |places, columns| Ok(writer.rows("w_enc", places.start, columns)?))?;
            self.decoder_rows(layer, &parts, |places, rows| {
                if !self.facts.crosses() {
                    return Ok(writer.rows("w_dec", places.start, &rows.f_squeeze_dim(1).map_err(CoreError::from)?)?);
                }
                // Layers before this one are zeros.
                let whole = rows.f_constant_pad_nd([0, 0, layer as i64, 0]).map_err(CoreError::from)?;
                Ok(writer.rows("w_dec", places.start, &whole)?)
            })?;
            for (name, vector) in [("b_enc", &parts.b_enc), ("b_dec", &parts.b_dec), ("threshold", &self.thresholds(&parts)?)] {
                writer.rows(name, 0, &cast(vector, self.kind)?)?;
            }
            if let Some(skip) = &parts.skip {
                let turned = skip.f_tr().and_then(|skip| skip.f_contiguous()).map_err(CoreError::from)?;
                writer.rows("affine_skip_connection", 0, &cast(&turned, self.kind)?)?;
            }
            writer.finish()?;
            Ok(())
        })?;
        self.card((0..layers).map(name).collect())
    }

    fn checkpoint(&self) -> Result<()> {
        let Dims { layers, d_model, d_features } = self.facts.dims;
        let [l, d, f] = [layers, d_model, d_features].map(|size| size as i64);
        let crosses = self.facts.crosses();
        let blocks = if crosses { l * (l + 1) / 2 } else { l };
        let tensor = |name: &str, shape: &[i64]| TensorLayout::new(name, shape, self.kind);
        let mut tensors =
            vec![tensor("W_enc", &[l, d, f]), tensor("b_enc", &[l, f]), tensor("W_dec", &[blocks, f, d]), tensor("b_dec", &[blocks, d])];
        // In 64 bits, so that the exponential is the threshold to the bit.
        tensors.push(TensorLayout::new("log_threshold", &[l, f], Kind::Double));
        tensors.push(TensorLayout::new("feature_count", &[l, f], Kind::Int64));
        tensors.extend([tensor(FACTORS_IN, &[l]), tensor(FACTORS_OUT, &[l])]);
        tensors.extend(crosses.then(|| tensor("layer_mask", &[l, blocks])));
        let layout = FileLayout::new(WEIGHTS, tensors);
        layout.create(self.part)?;
        let mut writer = layout.open(self.part)?;
        let ones = Tensor::f_ones([l], (self.kind, Device::Cpu)).map_err(CoreError::from)?;
        writer.rows(FACTORS_IN, 0, &ones)?;
        writer.rows(FACTORS_OUT, 0, &ones)?;
        self.layers(|layer, parts| {
            let at = layer as i64;
            self.encoder_columns(layer, &parts, |places, columns| Ok(writer.numbers("W_enc", (at * d + places.start) * f, columns)?))?;
            let first = if crosses { clt_forge::block(layers, layer, layer) } else { layer } as i64;
            self.decoder_rows(layer, &parts, |places, rows| {
                for target in 0..rows.size()[1] {
                    let block = rows.f_select(1, target).map_err(CoreError::from)?;
                    writer.numbers("W_dec", ((first + target) * f + places.start) * d, &block)?;
                }
                Ok(())
            })?;
            let row = |vector: &Tensor, kind| cast(&vector.unsqueeze(0), kind);
            writer.rows("b_enc", at, &row(&parts.b_enc, self.kind)?)?;
            writer.rows("log_threshold", at, &row(&self.logarithms(layer, &parts)?, Kind::Double)?)?;
            // All of a layer's bias in the block of its own features; the other blocks are zeros.
            writer.rows("b_dec", first, &row(&parts.b_dec, self.kind)?)?;
            if crosses {
                let mask = Tensor::f_zeros([1, blocks], (self.kind, Device::Cpu)).map_err(CoreError::from)?;
                let _ = mask.narrow(1, first, l - at).fill_(1.0);
                writer.rows("layer_mask", at, &mask)?;
            }
            Ok(())
        })?;
        writer.finish()?;
        let config = json!({
            "device": "cpu", "dtype": dtype_name(self.kind), "seed": 42, "model_name": self.facts.card.model_name, "d_in": d_model,
            "d_latent": d_features, "n_layers": layers, "jumprelu_bandwidth": 1.0, "jumprelu_init_threshold": 0.03,
            "normalize_decoder": false, "dead_feature_window": 250, "cross_layer_decoders": crosses, "context_size": 32,
            "l0_coefficient": 0.001, "ddp": false, "fsdp": false, "feature_sharding": false,
        });
        let path = self.part.join(CONFIG);
        let text = serde_json::to_vec_pretty(&config).map_err(|error| CoreError::format(&path, error.to_string()))?;
        Ok(files::write_atomic(&path, |out| out.write_all(&text))?)
    }

    /// What thresholds are the exponentials of: `-inf` of one that is 0.
    fn logarithms(&self, layer: usize, parts: &LayerParts) -> Result<Tensor> {
        let thresholds = cast(&self.thresholds(parts)?, Kind::Double)?;
        let least = thresholds.f_min().map_err(CoreError::from)?.double_value(&[]);
        if least < 0.0 {
            return Err(Error::Invalid(format!(
                "layer {layer} has a threshold of {least}; `--format clt-forge` holds those from 0 on, as exponentials"
            )));
        }
        Ok(thresholds.f_log().map_err(CoreError::from)?)
    }
}

/// What torch calls a type.
fn dtype_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        Kind::Double => "float64",
        _ => "float32",
    }
}

/// Refuses what circuit-tracer cannot read, though its layout is ours.
pub(crate) fn circuit_tracer_reads(folder: &Path, card: &Card) -> Result<()> {
    let refuse =
        |what: String| Err(CoreError::format(folder.join(CARD), format!("{what}, which `--format circuit-tracer` cannot hold")).into());
    let crosses = card.model_kind == super::source::CROSS_LAYER;
    let Some(known) = &card.circuitlab else { return Ok(()) };
    match known.activation.name.as_str() {
        "topk" if crosses => return refuse("its activation is `topk`, and features write to several layers".to_owned()),
        "topk" if known.activation.settings.get("positive").is_none_or(|positive| positive.as_bool() != Some(false)) => {
            return refuse("its `topk` leaves negative pre-activations out".to_owned());
        }
        "relu" | "jumprelu" | "topk" => {}
        other => return refuse(format!("its activation is `{other}`")),
    }
    if crosses && known.transcoder.settings.get("skip").and_then(serde_json::Value::as_bool) == Some(true) {
        return refuse("it has a linear skip, and features write to several layers".to_owned());
    }
    Ok(())
}
