//! The linear dictionary as a [`Transcoder`]: all that `clt` and `plt` share. What differs is a [`Layout`].

use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

use circuitlab_core::sparsity::has_thresholds;
use circuitlab_core::tensors::FileLayout;
use circuitlab_core::{
    Batch, Dictionary, Dims, Error, ParameterSpec, Parameters, Result, SavedRows, Scales, SparsityActivation, StepContext, StepOutput,
    Transcoder,
};
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

    /// The files of one layer.
    fn files(dims: Dims, index: usize, kind: Kind, thresholds: bool) -> Vec<FileLayout>;

    /// What they hold.
    fn saved(index: usize, layer: SavedLayer) -> Vec<SavedRows>;

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

    fn takes_shards(&self) -> bool {
        true
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

    fn dictionary(&self, params: &Parameters, layer: usize) -> Result<Dictionary> {
        dictionary::layer(params, layer)
    }

    fn files(&self, dims: Dims, activation: &dyn SparsityActivation, kind: Kind) -> Result<Vec<FileLayout>> {
        let thresholds = has_thresholds(activation)?;
        Ok((0..dims.layers).flat_map(|index| L::files(dims, index, kind, thresholds)).collect())
    }

    fn saved(
        &self,
        dims: Dims,
        index: usize,
        params: &Parameters,
        activation: &dyn SparsityActivation,
        scales: Scales<'_>,
    ) -> Result<Vec<SavedRows>> {
        scales.check(dims.layers)?;
        let targets = self.targets(dims, index)?;
        let layer = Layer::of(params, index)?;
        let [mut w_enc, w_dec, b_dec] = dictionary::folded(&layer, scales.inputs[index], &scales.targets[targets], scales.targets[index])?;
        let mut b_enc = layer.b_enc.shallow_clone();
        let thresholds = if let Some(form) = activation.jump_form(&layer.own)? {
            (w_enc, b_enc) = form.fold(&w_enc, &b_enc)?;
            Some(form.thresholds)
        } else {
            activation.thresholds(&layer.own)?
        };
        Ok(L::saved(index, SavedLayer { w_enc, b_enc, w_dec, b_dec, thresholds }))
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
