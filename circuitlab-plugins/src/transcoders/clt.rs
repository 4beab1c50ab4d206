//! `clt`: a cross-layer transcoder. Features of layer s write to the MLP outputs of layers s, s+1, .., L-1.
//!
//! Files, as circuit-tracer reads them: `W_enc_{s}.safetensors` with `W_enc_{s} [d_features, d_model]`, `b_enc_{s}`, `b_dec_{s}` and,
//! for JumpReLU, `threshold_{s}`; `W_dec_{s}.safetensors` with `W_dec_{s} [d_features, L - s, d_model]`. A linear skip, which circuit-tracer
//! cannot store, is `W_skip_{s} [d_model, d_model]` in the encoder's file; `x W_skip_{s}^T` of layer s is added to the reconstruction of it.

use std::ops::Range;
use std::path::Path;

use circuitlab_core::tensors::{FileLayout, TensorFile, TensorLayout};
use circuitlab_core::{Construct, Dims, Result, SavedRows};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use super::linear::{Layout, Linear, Optional, SavedLayer};
use super::step::Form;

register!(transcoder "clt" => CltConfig, "cross-layer transcoder: features of a layer write to that layer and all later ones");

/// Settings; the sizes are the run's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CltConfig {
    /// How a step is computed: `auto` (the default), `dense`, `kernels` or `operations`. The results differ by rounding.
    pub step: Form,
    /// Whether each layer has a linear skip, a matrix that adds `W_skip x` of the layer's inputs to its reconstruction. Default: `false`.
    pub skip: bool,
}

impl Construct for CltConfig {
    type Output = Linear<CrossLayer>;

    fn construct(&self) -> Result<Self::Output> {
        Ok(Linear::new(self.step, self.skip))
    }
}

/// The layout of cross-layer transcoders.
#[derive(Debug, Clone, Copy)]
pub struct CrossLayer;

impl Layout for CrossLayer {
    const MODEL_KIND: &'static str = "cross_layer_transcoder";
    const PREFIX: &'static str = "W_enc_";

    fn targets(layers: usize, source: usize) -> Range<usize> {
        source..layers
    }

    fn files(dims: Dims, s: usize, kind: Kind, holds: Optional) -> Vec<FileLayout> {
        let (features, d_model) = (dims.d_features as i64, dims.d_model as i64);
        let tensor = |name: &str, shape: &[i64]| TensorLayout::new(format!("{name}_{s}"), shape, kind);
        let mut encoder = vec![tensor("W_enc", &[features, d_model]), tensor("b_enc", &[features]), tensor("b_dec", &[d_model])];
        encoder.extend(holds.thresholds.then(|| tensor("threshold", &[features])));
        encoder.extend(holds.skip.then(|| tensor("W_skip", &[d_model, d_model])));
        let targets = Self::targets(dims.layers, s).len() as i64;
        let decoder = vec![tensor("W_dec", &[features, targets, d_model])];
        vec![FileLayout::new(file("W_enc", s), encoder), FileLayout::new(file("W_dec", s), decoder)]
    }

    fn saved(s: usize, layer: SavedLayer) -> Vec<SavedRows> {
        let rows = |of: &str, name: &str, rows, per_feature| SavedRows {
            file: file(of, s).into(),
            tensor: format!("{name}_{s}"),
            rows,
            per_feature,
        };
        let mut all = vec![
            rows("W_enc", "W_enc", layer.w_enc, true),
            rows("W_enc", "b_enc", layer.b_enc, true),
            rows("W_enc", "b_dec", layer.b_dec, false),
            rows("W_dec", "W_dec", layer.w_dec, true),
        ];
        all.extend(layer.thresholds.map(|thresholds| rows("W_enc", "threshold", thresholds, true)));
        all.extend(layer.skip.map(|skip| rows("W_enc", "W_skip", skip, false)));
        all
    }

    fn holds(folder: &Path) -> Result<Optional> {
        let encoder = TensorFile::open(&folder.join(file("W_enc", 0)))?;
        Ok(Optional { thresholds: encoder.contains("threshold_0")?, skip: encoder.contains("W_skip_0")? })
    }

    fn load(folder: &Path, s: usize, kind: Kind, device: Device) -> Result<SavedLayer> {
        let encoder = TensorFile::open(&folder.join(file("W_enc", s)))?;
        let decoder = TensorFile::open(&folder.join(file("W_dec", s)))?;
        let read = |name: &str| encoder.tensor(&format!("{name}_{s}"), Some(kind), device);
        let optional = |name: &str| encoder.contains(&format!("{name}_{s}"))?.then(|| read(name)).transpose();
        Ok(SavedLayer {
            w_enc: read("W_enc")?,
            b_enc: read("b_enc")?,
            w_dec: decoder.tensor(&format!("W_dec_{s}"), Some(kind), device)?,
            b_dec: read("b_dec")?,
            thresholds: optional("threshold")?.map(|thresholds| thresholds.view([-1])),
            skip: optional("W_skip")?,
        })
    }
}

fn file(of: &str, layer: usize) -> String {
    format!("{of}_{layer}.safetensors")
}
