//! The linear dictionary as a [`Transcoder`]: all that `clt` and `plt` share. What differs is a [`Layout`].

use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

use circuitlab_core::{Batch, Dims, Error, ParameterSpec, Parameters, Result, SparsityActivation, StepContext, StepOutput, Transcoder};
use tch::{Device, Kind, Tensor};

use super::dictionary::{self, Layer};
use super::files;
use super::step::{self, Form, Kept};

/// Which layers a feature writes to, and the files that circuit-tracer expects.
pub(super) trait Layout: Debug + Send + 'static {
    /// circuit-tracer's `model_kind`.
    const MODEL_KIND: &'static str;
    /// Each layer has a file `{PREFIX}{layer}.safetensors`.
    const PREFIX: &'static str;

    /// The target layers of a source layer.
    fn targets(layers: usize, source: usize) -> Range<usize>;

    /// Writes one layer.
    fn save(folder: &Path, index: usize, layer: &Layer<'_>, thresholds: Option<Tensor>) -> Result<()>;

    /// Reads one layer.
    fn load(folder: &Path, index: usize, kind: Kind, device: Device) -> Result<SavedLayer>;
}

/// One layer as it is stored, in the shapes of the parameters.
#[derive(Debug)]
pub(super) struct SavedLayer {
    pub(super) w_enc: Tensor,
    pub(super) b_enc: Tensor,
    pub(super) w_dec: Tensor,
    pub(super) b_dec: Tensor,
    pub(super) thresholds: Option<Tensor>,
}

/// A linear dictionary.
#[derive(Debug)]
pub struct Linear<L> {
    layout: PhantomData<L>,
    form: Form,
    kept: Kept,
}

impl<L> Linear<L> {
    pub(super) const fn new(form: Form) -> Self {
        Self { layout: PhantomData, form, kept: Kept::NEW }
    }
}

impl<L: Layout> Transcoder for Linear<L> {
    fn model_kind(&self) -> &'static str {
        L::MODEL_KIND
    }

    fn targets(&self, dims: Dims, source: usize) -> Result<Range<usize>> {
        if source < dims.layers {
            return Ok(L::targets(dims.layers, source));
        }
        Err(Error::Invalid(format!("there is no source layer {source}, there are {}", dims.layers)))
    }

    fn parameters(&self, dims: Dims, activation: &dyn SparsityActivation) -> Result<Vec<ParameterSpec>> {
        Ok(dictionary::parameters(dims, L::targets, activation))
    }

    fn calibrate(&self, params: &mut Parameters, activation: &dyn SparsityActivation, inputs: &Tensor, rate: f64) -> Result<()> {
        dictionary::calibrate(params, activation, inputs, rate)
    }

    fn step(&mut self, params: &Parameters, batch: &Batch, context: &StepContext<'_>) -> Result<StepOutput> {
        step::step(params, L::targets, batch, context, self.form, &mut self.kept)
    }

    fn encode(&self, params: &Parameters, activation: &dyn SparsityActivation, source: usize, inputs: &Tensor) -> Result<Tensor> {
        dictionary::encode(params, activation, source, inputs)
    }

    fn decode(&self, params: &Parameters, acts: &[Tensor], target: usize) -> Result<Tensor> {
        dictionary::decode(params, L::targets, acts, target)
    }

    fn fold(&self, params: &mut Parameters, input_scales: &[f64], target_scales: &[f64]) -> Result<()> {
        dictionary::fold(params, L::targets, input_scales, target_scales)
    }

    fn save(&self, folder: &Path, params: &Parameters, activation: &dyn SparsityActivation) -> Result<()> {
        for index in 0..dictionary::layers(params) {
            let layer = Layer::of(params, index)?;
            if let Some(form) = activation.jump_form(&layer.own)? {
                let (w_enc, b_enc) = form.fold(layer.w_enc, layer.b_enc)?;
                L::save(folder, index, &Layer { w_enc: &w_enc, b_enc: &b_enc, ..layer }, Some(form.thresholds))?;
            } else {
                L::save(folder, index, &layer, activation.thresholds(&layer.own)?)?;
            }
        }
        Ok(())
    }

    fn has_thresholds(&self, folder: &Path) -> Result<bool> {
        Ok(L::load(folder, 0, Kind::Float, Device::Cpu)?.thresholds.is_some())
    }

    fn load(&self, folder: &Path, activation: &dyn SparsityActivation, kind: Kind, device: Device) -> Result<(Dims, Parameters)> {
        let layers = files::layers_in(folder, L::PREFIX)?;
        let mut values = Vec::new();
        for index in 0..layers {
            let layer = L::load(folder, index, kind, device)?;
            values.extend([layer.w_enc, layer.b_enc, layer.w_dec, layer.b_dec]);
            values.extend(activation.params_with_thresholds(layer.thresholds.as_ref())?);
        }
        files::assemble(folder, self, activation, layers, values)
    }
}
