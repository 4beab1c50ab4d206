//! `plt`: per-layer transcoders. Features of a layer write to that layer's MLP output alone.
//!
//! Files, as circuit-tracer reads them: `layer_{l}.safetensors` with `W_enc [d_features, d_model]`, `b_enc`, `W_dec [d_features, d_model]`,
//! `b_dec` and, for JumpReLU, `activation_function.threshold`.

use std::ops::Range;
use std::path::Path;

use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{
    Batch, Construct, Dims, Error, ParameterSpec, Parameters, Result, SparsityActivation, StepContext, StepOutput, Transcoder,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::dictionary::{self, Layer};
use super::{files, step};

circuitlab_core::register!(transcoder "plt" => PltConfig, "per-layer transcoders: features of a layer write to that layer alone");

const THRESHOLD: &str = "activation_function.threshold";

/// No settings: the sizes are the run's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PltConfig {}

/// The per-layer transcoders of a model.
#[derive(Debug, Clone, Copy)]
pub struct Plt;

impl Construct for PltConfig {
    type Output = Plt;

    fn construct(&self) -> Result<Plt> {
        Ok(Plt)
    }
}

fn reach(_: usize, source: usize) -> Range<usize> {
    source..source + 1
}

impl Transcoder for Plt {
    fn model_kind(&self) -> &'static str {
        "transcoder_set"
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
        for index in 0..dictionary::layers(params) {
            let layer = Layer::of(params, index)?;
            let mut all = vec![
                ("W_enc".to_owned(), layer.w_enc.shallow_clone()),
                ("b_enc".to_owned(), layer.b_enc.shallow_clone()),
                ("W_dec".to_owned(), layer.w_dec.squeeze_dim(1)),
                ("b_dec".to_owned(), layer.b_dec.shallow_clone()),
            ];
            all.extend(activation.thresholds(&layer.own)?.map(|thresholds| (THRESHOLD.to_owned(), thresholds)));
            tensors::write(&folder.join(format!("layer_{index}.safetensors")), &all)?;
        }
        Ok(())
    }

    fn has_thresholds(&self, folder: &Path) -> Result<bool> {
        TensorFile::open(&folder.join("layer_0.safetensors"))?.contains(THRESHOLD)
    }

    fn load(&self, folder: &Path, activation: &dyn SparsityActivation, kind: Kind, device: Device) -> Result<(Dims, Parameters)> {
        let layers = files::layers_in(folder, "layer_")?;
        let mut values = Vec::new();
        for index in 0..layers {
            let file = TensorFile::open(&folder.join(format!("layer_{index}.safetensors")))?;
            let read = |name: &str| file.tensor(name, Some(kind), device);
            if file.contains("W_skip")? {
                return Err(Error::format(file.path(), "it has a linear skip `W_skip`, which a `plt` has not"));
            }
            let w_enc = read("W_enc")?;
            let thresholds = if file.contains(THRESHOLD)? {
                // circuit-tracer allows one number for all features.
                Some(read(THRESHOLD)?.f_expand([w_enc.size()[0]], false)?.contiguous())
            } else {
                None
            };
            values.extend([w_enc, read("b_enc")?, read("W_dec")?.unsqueeze(1), read("b_dec")?]);
            values.extend(activation.params_with_thresholds(thresholds.as_ref())?);
        }
        files::assemble(folder, self, activation, layers, values)
    }
}
