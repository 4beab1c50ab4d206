//! `clt`: a cross-layer transcoder. Features of layer s write to the MLP outputs of layers s, s+1, .., L-1.
//!
//! Files, as circuit-tracer reads them: `W_enc_{s}.safetensors` with `W_enc_{s} [d_features, d_model]`, `b_enc_{s}`, `b_dec_{s}` and,
//! for JumpReLU, `threshold_{s}`; `W_dec_{s}.safetensors` with `W_dec_{s} [d_features, L - s, d_model]`.

use std::ops::Range;
use std::path::Path;

use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{Batch, Construct, Dims, ParameterSpec, Parameters, Result, SparsityActivation, StepContext, StepOutput, Transcoder};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::dictionary::{self, Layer};
use super::{files, step};

circuitlab_core::register!(transcoder "clt" => CltConfig, "cross-layer transcoder: features of a layer write to that layer and all later ones");

/// No settings: the sizes are the run's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CltConfig {}

/// The cross-layer transcoder.
#[derive(Debug, Clone, Copy)]
pub struct Clt;

impl Construct for CltConfig {
    type Output = Clt;

    fn construct(&self) -> Result<Clt> {
        Ok(Clt)
    }
}

fn reach(layers: usize, source: usize) -> Range<usize> {
    source..layers
}

impl Transcoder for Clt {
    fn model_kind(&self) -> &'static str {
        "cross_layer_transcoder"
    }

    fn targets(&self, dims: Dims, source: usize) -> Range<usize> {
        reach(dims.layers, source)
    }

    fn parameters(&self, dims: Dims, activation: &dyn SparsityActivation) -> Vec<ParameterSpec> {
        dictionary::parameters(dims, reach, activation)
    }

    fn calibrate(&self, params: &mut Parameters, activation: &dyn SparsityActivation, inputs: &Tensor, rate: f64) -> Result<()> {
        dictionary::calibrate(params, activation, inputs, rate)
    }

    fn step(&mut self, params: &Parameters, batch: &Batch, context: &StepContext<'_>) -> Result<StepOutput> {
        step::step(params, reach, batch, context)
    }

    fn encode(&self, params: &Parameters, activation: &dyn SparsityActivation, source: usize, inputs: &Tensor) -> Result<Tensor> {
        dictionary::encode(params, activation, source, inputs)
    }

    fn decode(&self, params: &Parameters, acts: &[Tensor], target: usize) -> Result<Tensor> {
        dictionary::decode(params, reach, acts, target)
    }

    fn fold(&self, params: &mut Parameters, input_scales: &[f64], target_scales: &[f64]) -> Result<()> {
        dictionary::fold(params, reach, input_scales, target_scales)
    }

    fn save(&self, folder: &Path, params: &Parameters, activation: &dyn SparsityActivation) -> Result<()> {
        for s in 0..dictionary::layers(params) {
            let layer = Layer::of(params, s)?;
            let mut encoder = vec![
                (format!("W_enc_{s}"), layer.w_enc.shallow_clone()),
                (format!("b_enc_{s}"), layer.b_enc.shallow_clone()),
                (format!("b_dec_{s}"), layer.b_dec.shallow_clone()),
            ];
            if let Some(thresholds) = activation.thresholds(&layer.own)? {
                encoder.push((format!("threshold_{s}"), thresholds));
            }
            tensors::write(&folder.join(format!("W_enc_{s}.safetensors")), &encoder)?;
            tensors::write(&folder.join(format!("W_dec_{s}.safetensors")), &[(format!("W_dec_{s}"), layer.w_dec.shallow_clone())])?;
        }
        Ok(())
    }

    fn has_thresholds(&self, folder: &Path) -> Result<bool> {
        TensorFile::open(&folder.join("W_enc_0.safetensors"))?.contains("threshold_0")
    }

    fn load(&self, folder: &Path, activation: &dyn SparsityActivation, kind: Kind, device: Device) -> Result<(Dims, Parameters)> {
        let layers = files::layers_in(folder, "W_enc_")?;
        let mut values = Vec::new();
        for s in 0..layers {
            let encoder = TensorFile::open(&folder.join(format!("W_enc_{s}.safetensors")))?;
            let decoder = TensorFile::open(&folder.join(format!("W_dec_{s}.safetensors")))?;
            let read = |name: &str| encoder.tensor(&format!("{name}_{s}"), Some(kind), device);
            let thresholds = if encoder.contains(&format!("threshold_{s}"))? { Some(read("threshold")?.view([-1])) } else { None };
            values.extend([read("W_enc")?, read("b_enc")?, decoder.tensor(&format!("W_dec_{s}"), Some(kind), device)?, read("b_dec")?]);
            values.extend(activation.params_with_thresholds(thresholds.as_ref())?);
        }
        files::assemble(folder, self, activation, layers, values)
    }
}
