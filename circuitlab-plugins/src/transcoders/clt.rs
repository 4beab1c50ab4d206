//! `clt`: a cross-layer transcoder. Features of layer s write to the MLP outputs of layers s, s+1, .., L-1.
//!
//! Files, as circuit-tracer reads them: `W_enc_{s}.safetensors` with `W_enc_{s} [d_features, d_model]`, `b_enc_{s}`, `b_dec_{s}` and,
//! for JumpReLU, `threshold_{s}`; `W_dec_{s}.safetensors` with `W_dec_{s} [d_features, L - s, d_model]`.

use std::ops::Range;
use std::path::Path;

use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{Construct, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::dictionary::Layer;
use super::linear::{Layout, Linear, SavedLayer};
use super::step::Form;

register!(transcoder "clt" => CltConfig, "cross-layer transcoder: features of a layer write to that layer and all later ones");

/// Settings; the sizes are the run's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CltConfig {
    /// How a step is computed: `auto` (the default), `dense`, `kernels` or `operations`. The results differ by rounding.
    pub step: Form,
}

impl Construct for CltConfig {
    type Output = Linear<CrossLayer>;

    fn construct(&self) -> Result<Self::Output> {
        Ok(Linear::new(self.step))
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

    fn save(folder: &Path, s: usize, layer: &Layer<'_>, thresholds: Option<Tensor>) -> Result<()> {
        let mut encoder = vec![
            (format!("W_enc_{s}"), layer.w_enc.shallow_clone()),
            (format!("b_enc_{s}"), layer.b_enc.shallow_clone()),
            (format!("b_dec_{s}"), layer.b_dec.shallow_clone()),
        ];
        encoder.extend(thresholds.map(|thresholds| (format!("threshold_{s}"), thresholds)));
        tensors::write(&folder.join(format!("W_enc_{s}.safetensors")), &encoder)?;
        tensors::write(&folder.join(format!("W_dec_{s}.safetensors")), &[(format!("W_dec_{s}"), layer.w_dec.shallow_clone())])
    }

    fn load(folder: &Path, s: usize, kind: Kind, device: Device) -> Result<SavedLayer> {
        let encoder = TensorFile::open(&folder.join(format!("W_enc_{s}.safetensors")))?;
        let decoder = TensorFile::open(&folder.join(format!("W_dec_{s}.safetensors")))?;
        let read = |name: &str| encoder.tensor(&format!("{name}_{s}"), Some(kind), device);
        Ok(SavedLayer {
            w_enc: read("W_enc")?,
            b_enc: read("b_enc")?,
            w_dec: decoder.tensor(&format!("W_dec_{s}"), Some(kind), device)?,
            b_dec: read("b_dec")?,
            thresholds: if encoder.contains(&format!("threshold_{s}"))? { Some(read("threshold")?.view([-1])) } else { None },
        })
    }
}
