//! `plt`: per-layer transcoders. Features of a layer write to that layer's MLP output alone.
//!
//! Files, as circuit-tracer reads them: `layer_{l}.safetensors` with `W_enc [d_features, d_model]`, `b_enc`, `W_dec [d_features, d_model]`,
//! `b_dec` and, for JumpReLU, `activation_function.threshold`; with a linear skip `W_skip [d_model, d_model]`, of which `x W_skip^T` is added.

use std::ops::Range;
use std::path::Path;

use circuitlab_core::tensors::{FileLayout, TensorFile, TensorLayout};
use circuitlab_core::{Construct, Dims, Result, SavedRows};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use super::linear::{Layout, Linear, Optional, SavedLayer};
use super::step::Form;

register!(transcoder "plt" => PltConfig, "per-layer transcoders: features of a layer write to that layer alone");

const THRESHOLD: &str = "activation_function.threshold";
const SKIP: &str = "W_skip";

/// Settings; the sizes are the run's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PltConfig {
    /// How a step is computed: `auto` (the default), `dense`, `kernels` or `operations`. The results differ by rounding.
    pub step: Form,
    /// Whether each layer has a linear skip, a matrix that adds `W_skip x` of the layer's inputs to its reconstruction. Default: `false`.
    pub skip: bool,
}

impl Construct for PltConfig {
    type Output = Linear<PerLayer>;

    fn construct(&self) -> Result<Self::Output> {
        Ok(Linear::new(self.step, self.skip))
    }
}

/// The layout of per-layer transcoders.
#[derive(Debug, Clone, Copy)]
pub struct PerLayer;

impl Layout for PerLayer {
    const MODEL_KIND: &'static str = "transcoder_set";
    const PREFIX: &'static str = "layer_";

    fn targets(_: usize, source: usize) -> Range<usize> {
        source..source + 1
    }

    fn files(dims: Dims, index: usize, kind: Kind, holds: Optional) -> Vec<FileLayout> {
        let (features, d_model) = (dims.d_features as i64, dims.d_model as i64);
        let tensor = |name: &str, shape: &[i64]| TensorLayout::new(name, shape, kind);
        let mut all = vec![
            tensor("W_enc", &[features, d_model]),
            tensor("b_enc", &[features]),
            tensor("W_dec", &[features, d_model]),
            tensor("b_dec", &[d_model]),
        ];
        all.extend(holds.thresholds.then(|| tensor(THRESHOLD, &[features])));
        all.extend(holds.skip.then(|| tensor(SKIP, &[d_model, d_model])));
        vec![FileLayout::new(file(index), all)]
    }

    fn saved(index: usize, layer: SavedLayer) -> Vec<SavedRows> {
        let rows = |name: &str, rows, per_feature| SavedRows { file: file(index).into(), tensor: name.to_owned(), rows, per_feature };
        let mut all = vec![
            rows("W_enc", layer.w_enc, true),
            rows("b_enc", layer.b_enc, true),
            rows("W_dec", layer.w_dec.squeeze_dim(1), true),
            rows("b_dec", layer.b_dec, false),
        ];
        all.extend(layer.thresholds.map(|thresholds| rows(THRESHOLD, thresholds, true)));
        all.extend(layer.skip.map(|skip| rows(SKIP, skip, false)));
        all
    }

    fn holds(folder: &Path) -> Result<Optional> {
        let file = TensorFile::open(&folder.join(file(0)))?;
        Ok(Optional { thresholds: file.contains(THRESHOLD)?, skip: file.contains(SKIP)? })
    }

    fn load(folder: &Path, index: usize, kind: Kind, device: Device) -> Result<SavedLayer> {
        let file = TensorFile::open(&folder.join(file(index)))?;
        let read = |name: &str| file.tensor(name, Some(kind), device);
        let (w_enc, b_enc) = (read("W_enc")?, read("b_enc")?);
        // circuit-tracer allows one threshold for all features.
        let thresholds = if file.contains(THRESHOLD)? { Some(read(THRESHOLD)?.f_expand_as(&b_enc)?.contiguous()) } else { None };
        let skip = file.contains(SKIP)?.then(|| read(SKIP)).transpose()?;
        Ok(SavedLayer { w_enc, b_enc, w_dec: read("W_dec")?.unsqueeze(1), b_dec: read("b_dec")?, thresholds, skip })
    }
}

fn file(layer: usize) -> String {
    format!("layer_{layer}.safetensors")
}
