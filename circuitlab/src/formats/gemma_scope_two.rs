//! Gemma Scope 2's transcoders, per-layer and cross-layer: a safetensors file for each layer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{BlockHook, Dims, Error as CoreError};
use serde_json::Value;
use tch::Kind;

use super::array::Array;
use super::find;
use super::gemma_scope::card;
use super::source::{CROSS_LAYER, Facts, LayerArrays, LayerParts, PER_LAYER, Source};
use crate::Result;
use crate::saved::Card;

#[derive(Debug)]
struct Files {
    facts: Facts,
    files: Vec<PathBuf>,
}

/// Opens a folder of such files.
pub(super) fn open(folder: &Path) -> Result<Box<dyn Source>> {
    let is_one = |path: &Path| Ok(path.extension().is_some_and(|of| of == "safetensors") && TensorFile::open(path)?.contains("w_enc")?);
    let files = find::by_layer(folder, is_one)?;
    let first = Arc::new(TensorFile::open(&files[0])?);
    let crosses = match Array::of(&first, "w_dec")?.shape().len() {
        2 => false,
        3 => true,
        _ => {
            return Err(
                Array::of(&first, "w_dec")?.wrong("expected shape [d_features, d_model], or [d_features, layers, d_model] of a CLT")
            );
        }
    };
    // The norm before the MLP, with its gain, is what the published transcoders read.
    let hooks = [BlockHook::MlpIn, BlockHook::MlpOut];
    let kind = if crosses { CROSS_LAYER } else { PER_LAYER };
    let mut card = card(folder, kind, published_hooks(&files[0])?.unwrap_or(hooks))?;
    name_model(&mut card, &files[0])?;
    let dims = Dims { layers: files.len(), d_model: 0, d_features: 0 };
    let mut opened = Files { facts: Facts::plain(dims, Kind::Float, card, [false; 2]), files };
    opened.facts.thresholds = first.contains("threshold")?;
    let arrays = opened.arrays(0)?;
    let [d_model, d_features] = arrays.sizes(opened.facts.targets(0).len())?;
    let facts = &mut opened.facts;
    (facts.dims.d_model, facts.dims.d_features, facts.kind) = (d_model, d_features, arrays.w_enc.kind());
    facts.skip = arrays.skip.is_some();
    let mut is_relu = true;
    for layer in 0..opened.files.len() {
        let arrays = opened.arrays(layer)?;
        arrays.check(layer, opened.facts.targets(layer).len(), &opened.facts)?;
        let zero = |thresholds: &Array| Ok::<_, crate::Error>(thresholds.read()?.count_nonzero(None).int64_value(&[]) == 0);
        is_relu = is_relu && arrays.thresholds.as_ref().map_or(Ok(true), zero)?;
    }
    // Thresholds that are all zero are a ReLU's.
    opened.facts.thresholds &= !is_relu;
    Ok(Box::new(opened))
}

/// `config.json` beside a file, where there is one.
fn config(file: &Path) -> Result<Option<Value>> {
    let path = file.with_file_name("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(CoreError::io("read", &path))?;
    Ok(Some(serde_json::from_slice(&text).map_err(|error| CoreError::format(&path, format!("not valid JSON: {error}")))?))
}

/// The model that a file's own config names.
fn name_model(card: &mut Card, file: &Path) -> Result<()> {
    let config = config(file)?;
    if let Some(name) = config.as_ref().and_then(|config| config.get("model_name")).and_then(Value::as_str)
        && card.model_name.is_empty()
    {
        name.clone_into(&mut card.model_name);
    }
    Ok(())
}

/// The places that a file's own config names, by the modules of Hugging Face's Gemma 3.
fn published_hooks(file: &Path) -> Result<Option<[BlockHook; 2]>> {
    let Some(config) = config(file)? else { return Ok(None) };
    let hook = |key: &str| -> Result<Option<BlockHook>> {
        let Some(name) = config.get(key).and_then(Value::as_str) else { return Ok(None) };
        match name.splitn(4, '.').nth(3) {
            Some("pre_feedforward_layernorm.output" | "mlp.input") => Ok(Some(BlockHook::MlpIn)),
            Some("post_feedforward_layernorm.output") => Ok(Some(BlockHook::MlpOut)),
            Some("mlp.output") => Ok(Some(BlockHook::MlpRawOut)),
            _ => {
                let message = format!("`{key}` is `{name}`, which is no place that a transcoder of an MLP reads or writes");
                Err(CoreError::format(file.with_file_name("config.json"), message).into())
            }
        }
    };
    Ok(hook("hf_hook_point_in")?.zip(hook("hf_hook_point_out")?).map(|(input, output)| [input, output]))
}

impl Files {
    fn arrays(&self, layer: usize) -> Result<LayerArrays> {
        let file = Arc::new(TensorFile::open(&self.files[layer])?);
        let of = |name: &str| Array::of(&file, name);
        let optional = |name: &str| if file.contains(name)? { of(name).map(Some) } else { Ok(None) };
        let layers = self.facts.dims.layers as i64;
        let w_dec = if self.facts.crosses() {
            let w_dec = of("w_dec")?;
            match w_dec.sizes(["d_features", "layers", "d_model"])? {
                [_, all, _] if all == layers => w_dec.narrow(1, layer as i64..layers)?,
                [_, all, _] => return Err(w_dec.wrong(&format!("it writes to {all} layers, and there are files of {layers}"))),
            }
        } else {
            of("w_dec")?.unsqueezed(1)
        };
        Ok(LayerArrays {
            w_enc: of("w_enc")?.permuted(&[1, 0]),
            b_enc: of("b_enc")?,
            w_dec,
            b_dec: of("b_dec")?,
            thresholds: if self.facts.thresholds { optional("threshold")? } else { None },
            // `x A` is added.
            skip: optional("affine_skip_connection")?.map(|skip| skip.permuted(&[1, 0])),
        })
    }
}

impl Source for Files {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    fn layer(&self, layer: usize) -> Result<LayerParts> {
        self.arrays(layer)?.read(layer, self.facts.dims.d_features)
    }
}
