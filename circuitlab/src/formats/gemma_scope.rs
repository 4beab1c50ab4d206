//! Gemma Scope's per-layer transcoders: an archive of numpy arrays for each layer.

use std::path::{Path, PathBuf};

use circuitlab_core::{BlockHook, Dims, Error as CoreError};
use tch::Kind;

use super::array::{Array, byte_count};
use super::find;
use super::npy::Header;
use super::npz::Npz;
use super::source::{Facts, LayerArrays, LayerParts, PER_LAYER, Source};
use crate::Result;
use crate::saved::{CARD, Card, read_card};

#[derive(Debug)]
struct Archives {
    facts: Facts,
    files: Vec<PathBuf>,
}

/// The card of a folder, where it has one, with what holds for these transcoders whatever it says.
pub(super) fn card(folder: &Path, model_kind: &str, [input, output]: [BlockHook; 2]) -> Result<Card> {
    let mut card = if folder.join(CARD).is_file() { read_card(folder)? } else { Card::default() };
    if !card.model_kind.is_empty() && card.model_kind != model_kind {
        let message = format!("`model_kind` is `{}`, and the files hold a `{model_kind}`", card.model_kind);
        return Err(CoreError::format(folder.join(CARD), message).into());
    }
    model_kind.clone_into(&mut card.model_kind);
    for (of_card, hook) in [(&mut card.feature_input_hook, input), (&mut card.feature_output_hook, output)] {
        if of_card.is_empty() {
            *of_card = hook.to_string();
        }
    }
    (card.transcoders, card.activation, card.k) = (None, None, None);
    Ok(card)
}

/// Opens a folder of archives.
pub(super) fn open(folder: &Path) -> Result<Box<dyn Source>> {
    let files = find::by_layer(folder, |path| Ok(path.extension().is_some_and(|extension| extension == "npz")))?;
    let card = card(folder, PER_LAYER, [BlockHook::Ln2Normalized, BlockHook::MlpOut])?;
    let (mut dims, mut kind, mut jumps) = (Dims { layers: files.len(), d_model: 0, d_features: 0 }, Kind::Float, false);
    for (layer, path) in files.iter().enumerate() {
        let mut npz = Npz::open(path)?;
        let (d_model, d_features, of_layer, threshold) = check(&mut npz, path)?;
        if layer == 0 {
            (dims.d_model, dims.d_features, kind, jumps) = (d_model, d_features, of_layer, threshold);
        } else if (d_model, d_features) != (dims.d_model, dims.d_features) {
            let message = format!(
                "layer {layer} has {d_features} features and d_model {d_model}, layer 0 has {} and {}; expected the same in all layers",
                dims.d_features, dims.d_model
            );
            return Err(CoreError::format(path, message).into());
        } else if threshold != jumps {
            return Err(CoreError::format(path, format!("layer {layer} and layer 0 differ in having an array `threshold`")).into());
        }
    }
    let mut archives = Archives { facts: Facts::plain(dims, kind, card, [jumps, false]), files };
    archives.facts.thresholds = jumps && !archives.is_relu()?;
    Ok(Box::new(archives))
}

/// Checks the shapes of a layer's arrays; gives its sizes, its type and whether it has thresholds.
fn check(npz: &mut Npz, path: &Path) -> Result<(usize, usize, Kind, bool)> {
    let mut need = |name: &str| -> Result<Header> {
        npz.header(name)?.ok_or_else(|| CoreError::format(path, format!("the archive holds no array `{name}`")).into())
    };
    let headers = [need("W_enc")?, need("W_dec")?, need("b_enc")?, need("b_dec")?];
    let (kind, [d_model, features]) = match headers[0].shape[..] {
        [d_model, features] if d_model > 0 && features > 0 => (headers[0].kind, [d_model, features]),
        ref other => {
            return Err(CoreError::format(path, format!("array `W_enc` has shape {other:?}, expected [d_model, d_features]")).into());
        }
    };
    let threshold = npz.header("threshold")?;
    let wanted = [vec![d_model, features], vec![features, d_model], vec![features], vec![d_model], vec![features]];
    let names = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"];
    for ((name, header), shape) in names.into_iter().zip(headers.iter().chain(&threshold)).zip(wanted) {
        if header.shape != shape {
            return Err(CoreError::format(path, format!("array `{name}` has shape {:?}, expected {shape:?}", header.shape)).into());
        }
    }
    debug_assert!(byte_count(&headers[0].shape, kind).is_some(), "a header that was read");
    Ok((d_model as usize, features as usize, kind, threshold.is_some()))
}

impl Archives {
    /// Whether all thresholds are zero, which is a ReLU.
    fn is_relu(&self) -> Result<bool> {
        for path in &self.files {
            let thresholds = Npz::open(path)?.array("threshold")?.read()?;
            if thresholds.count_nonzero(None).int64_value(&[]) > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Source for Archives {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn facts_mut(&mut self) -> &mut Facts {
        &mut self.facts
    }

    fn layer(&self, layer: usize) -> Result<LayerParts> {
        let mut npz = Npz::open(&self.files[layer])?;
        let thresholds: Option<Array> = if self.facts.thresholds { Some(npz.array("threshold")?) } else { None };
        let arrays = LayerArrays {
            w_enc: npz.array("W_enc")?.permuted(&[1, 0]),
            b_enc: npz.array("b_enc")?,
            w_dec: npz.array("W_dec")?.unsqueezed(1),
            b_dec: npz.array("b_dec")?,
            thresholds,
            skip: None,
        };
        // The file may be another one by now.
        arrays.check(layer, 1, &self.facts)?;
        arrays.read(layer, self.facts.dims.d_features)
    }
}
