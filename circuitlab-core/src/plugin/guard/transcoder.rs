//! Guarded transcoders.

use std::ops::Range;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::guarded::Guarded;
use crate::tensors::FileLayout;
use crate::{
    Batch, Dictionary, Dims, ParameterSpec, Parameters, Result, SavedRows, Scales, SparsityActivation, StepContext, StepOutput, Transcoder,
};

/// Guards a transcoder.
///
/// # Errors
/// A panic while it names its kind.
pub fn transcoder<T: Transcoder + 'static>(what: &'static str, made: T) -> Result<Box<dyn Transcoder>> {
    Ok(Box::new(Guarded::new(what, made).ask(T::model_kind)?))
}

impl<T: Transcoder> Transcoder for Guarded<T, &'static str> {
    fn model_kind(&self) -> &'static str {
        self.facts
    }

    fn targets(&self, dims: Dims, source: usize) -> Result<Range<usize>> {
        self.call(|transcoder| transcoder.targets(dims, source))
    }

    fn parameters(&self, dims: Dims, activation: &dyn SparsityActivation) -> Result<Vec<ParameterSpec>> {
        self.call(|transcoder| transcoder.parameters(dims, activation))
    }

    fn calibrate(&self, params: &mut Parameters, activation: &dyn SparsityActivation, inputs: &Tensor, rate: f64) -> Result<()> {
        self.call(|transcoder| transcoder.calibrate(params, activation, inputs, rate))
    }

    fn takes_shards(&self) -> bool {
        self.call(|transcoder| Ok(transcoder.takes_shards())).unwrap_or(false)
    }

    fn step(&mut self, params: &Parameters, batch: &Batch, context: &StepContext<'_>) -> Result<StepOutput> {
        self.call_mut(|transcoder| transcoder.step(params, batch, context))
    }

    fn encode(&self, params: &Parameters, activation: &dyn SparsityActivation, source: usize, inputs: &Tensor) -> Result<Tensor> {
        self.call(|transcoder| transcoder.encode(params, activation, source, inputs))
    }

    fn decode(&self, params: &Parameters, acts: &[Tensor], inputs: &Tensor, target: usize) -> Result<Tensor> {
        self.call(|transcoder| transcoder.decode(params, acts, inputs, target))
    }

    fn dictionary(&self, params: &Parameters, layer: usize) -> Result<Dictionary> {
        self.call(|transcoder| transcoder.dictionary(params, layer))
    }

    fn files(&self, dims: Dims, activation: &dyn SparsityActivation, kind: Kind) -> Result<Vec<FileLayout>> {
        self.call(|transcoder| transcoder.files(dims, activation, kind))
    }

    fn saved(
        &self,
        dims: Dims,
        layer: usize,
        params: &Parameters,
        activation: &dyn SparsityActivation,
        scales: Scales<'_>,
    ) -> Result<Vec<SavedRows>> {
        self.call(|transcoder| transcoder.saved(dims, layer, params, activation, scales))
    }

    fn has_thresholds(&self, folder: &Path) -> Result<bool> {
        self.call(|transcoder| transcoder.has_thresholds(folder))
    }

    fn has_skip(&self, folder: &Path) -> Result<bool> {
        self.call(|transcoder| transcoder.has_skip(folder))
    }

    fn load(&self, folder: &Path, activation: &dyn SparsityActivation, kind: Kind, device: Device) -> Result<(Dims, Parameters)> {
        self.call(|transcoder| transcoder.load(folder, activation, kind, device))
    }
}
