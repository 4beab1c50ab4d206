//! circuit-tracer's folders, and our own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{Dims, Error as CoreError};
use tch::Kind;

use super::array::Array;
use super::find;
use super::source::{CROSS_LAYER, Facts, LayerArrays, LayerParts, PER_LAYER, Source};
use crate::Result;
use crate::saved::{CARD, Card, read_card};

const THRESHOLD: &str = "activation_function.threshold";

/// A folder of circuit-tracer.
#[derive(Debug)]
struct Folder {
    facts: Facts,
    /// Encoders' files, or those of whole layers.
    files: Vec<PathBuf>,
    /// Decoders' files, of a cross-layer transcoder.
    decoders: Vec<PathBuf>,
}

/// Whether a folder without `config.yaml` has circuit-tracer's files.
pub(super) fn is(folder: &Path) -> Result<bool> {
    Ok(!numbered(folder, "W_enc_")?.is_empty() || !numbered(folder, "layer_")?.is_empty())
}

/// The files `{prefix}{number}.safetensors`.
fn numbered(folder: &Path, prefix: &str) -> Result<BTreeMap<usize, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(CoreError::io("read", folder))? {
        let path = entry.map_err(CoreError::io("read", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".safetensors")?.parse::<usize>().ok());
        found.extend(number.map(|number| (number, path)));
    }
    Ok(found)
}

/// Opens a folder. One without `config.yaml`, as circuit-tracer's own writer leaves it, has no hooks.
pub(super) fn open(folder: &Path) -> Result<Box<dyn Source>> {
    let mut card = if folder.join(CARD).is_file() || !is(folder)? { read_card(folder)? } else { Card::default() };
    if card.model_kind.is_empty() {
        let kind = if numbered(folder, "W_enc_")?.is_empty() { PER_LAYER } else { CROSS_LAYER };
        kind.clone_into(&mut card.model_kind);
    }
    let (files, decoders) = match card.model_kind.as_str() {
        CROSS_LAYER => {
            let files = find::without_gaps(folder, numbered(folder, "W_enc_")?)?;
            let decoder = |layer| folder.join(format!("W_dec_{layer}.safetensors"));
            let decoders = (0..files.len()).map(decoder).collect();
            (files, decoders)
        }
        PER_LAYER => {
            let files = match find::listed(folder)? {
                Some(files) => files,
                None => find::without_gaps(folder, numbered(folder, "layer_")?)?,
            };
            (files, Vec::new())
        }
        other => {
            let message = format!("unknown `model_kind: {other}`; known: {PER_LAYER}, {CROSS_LAYER}");
            return Err(CoreError::format(folder.join(CARD), message).into());
        }
    };
    card.transcoders = None;
    if card.activation.as_deref() == Some("topk") && card.k.is_none() {
        card.k = k_of(&files[0])?;
    }
    let dims = Dims { layers: files.len(), d_model: 0, d_features: 0 };
    let mut opened = Folder { facts: Facts::plain(dims, Kind::Float, card, [false; 2]), files, decoders };
    let arrays = opened.arrays(0)?;
    let facts = &mut opened.facts;
    let [d_model, d_features] = arrays.sizes(facts.targets(0).len())?;
    (facts.dims.d_model, facts.dims.d_features, facts.kind) = (d_model, d_features, arrays.w_enc.kind());
    (facts.thresholds, facts.skip) = (arrays.thresholds.is_some(), arrays.skip.is_some());
    for layer in 0..opened.files.len() {
        opened.arrays(layer)?.check(layer, opened.facts.targets(layer).len(), &opened.facts)?;
    }
    Ok(Box::new(opened))
}

/// The number of active features that the file of a layer has beside its weights.
fn k_of(path: &Path) -> Result<Option<u64>> {
    let file = TensorFile::open(path)?;
    if !file.contains("k")? {
        return Ok(None);
    }
    let k = file.tensor("k", Some(Kind::Int64), tch::Device::Cpu)?;
    match (k.numel(), k.view([-1]).iter::<i64>().ok().and_then(|mut numbers| numbers.next())) {
        (1, Some(k)) if k > 0 => Ok(Some(k as u64)),
        _ => Err(CoreError::format(path, "`k` is no number of active features; expected one integer above 0").into()),
    }
}

impl Folder {
    fn arrays(&self, layer: usize) -> Result<LayerArrays> {
        let file = Arc::new(TensorFile::open(&self.files[layer])?);
        let decoder = self.decoders.get(layer).map(|path| TensorFile::open(path)).transpose()?.map(Arc::new);
        let name = |name: &str| if decoder.is_some() { format!("{name}_{layer}") } else { name.to_owned() };
        let of = |plain: &str| Array::of(&file, &name(plain));
        let optional =
            |name: &str| -> Result<Option<Array>> { if file.contains(name)? { Ok(Some(Array::of(&file, name)?)) } else { Ok(None) } };
        let w_dec = match &decoder {
            Some(decoder) => Array::of(decoder, &name("W_dec"))?,
            None => of("W_dec")?.unsqueezed(1),
        };
        let threshold = if decoder.is_some() { name("threshold") } else { THRESHOLD.to_owned() };
        // What says `relu` is one, whatever its files hold.
        let thresholds = if self.facts.card.activation.as_deref() == Some("relu") { None } else { optional(&threshold)? };
        // Those of a whole transcoder keep an axis for positions when they are saved.
        let thresholds = thresholds.map(|array| if array.shape().len() == 2 { array.select(0, 0) } else { Ok(array) }).transpose()?;
        Ok(LayerArrays {
            w_enc: of("W_enc")?,
            b_enc: of("b_enc")?,
            w_dec,
            b_dec: of("b_dec")?,
            thresholds,
            skip: optional(&name("W_skip"))?,
        })
    }
}

impl Source for Folder {
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
