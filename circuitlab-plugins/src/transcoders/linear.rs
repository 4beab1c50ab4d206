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
    fn files(dims: Dims, index: usize, kind: Kind, holds: Optional) -> Vec<FileLayout>;

    /// What they hold.
    fn saved(index: usize, layer: SavedLayer) -> Vec<SavedRows>;

    /// What the files of the first layer hold.
    fn holds(folder: &Path) -> Result<Optional>;

    /// Reads one layer.
    fn load(folder: &Path, index: usize, kind: Kind, device: Device) -> Result<SavedLayer>;
}

/// What a layer's files may hold beside encoder, decoder and biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Optional {
    pub(super) thresholds: bool,
    pub(super) skip: bool,
}

/// One layer as it is stored, in the shapes of the parameters.
#[derive(Debug)]
pub(super) struct SavedLayer {
    pub(super) w_enc: Tensor,
    pub(super) b_enc: Tensor,
    pub(super) w_dec: Tensor,
    pub(super) b_dec: Tensor,
    pub(super) thresholds: Option<Tensor>,
    /// `[d_model, d_model]`, of which `x W_skip^T` is added.
    pub(super) skip: Option<Tensor>,
}

/// A linear dictionary.
#[derive(Debug)]
pub struct Linear<L> {
    layout: PhantomData<L>,
    form: Form,
    skip: bool,
    kept: Kept,
}

impl<L> Linear<L> {
    pub(super) const fn new(form: Form, skip: bool) -> Self {
        Self { layout: PhantomData, form, skip, kept: Kept::NEW }
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
        Ok(dictionary::parameters(dims, L::targets, activation, self.skip))
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

    fn decode(&self, params: &Parameters, acts: &[Tensor], inputs: &Tensor, target: usize) -> Result<Tensor> {
        dictionary::decode(params, L::targets, acts, inputs, target)
    }

    fn dictionary(&self, params: &Parameters, layer: usize) -> Result<Dictionary> {
        dictionary::layer(params, layer)
    }

    fn files(&self, dims: Dims, activation: &dyn SparsityActivation, kind: Kind) -> Result<Vec<FileLayout>> {
        let holds = Optional { thresholds: has_thresholds(activation)?, skip: self.skip };
        Ok((0..dims.layers).flat_map(|index| L::files(dims, index, kind, holds)).collect())
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
        let ([mut w_enc, w_dec, b_dec], skip) =
            dictionary::folded(&layer, scales.inputs[index], &scales.targets[targets], scales.targets[index])?;
        let mut b_enc = layer.b_enc.shallow_clone();
        let thresholds = if let Some(form) = activation.jump_form(&layer.own)? {
            (w_enc, b_enc) = form.fold(&w_enc, &b_enc)?;
            Some(form.thresholds)
        } else {
            activation.thresholds(&layer.own)?
        };
        Ok(L::saved(index, SavedLayer { w_enc, b_enc, w_dec, b_dec, thresholds, skip }))
    }

    fn has_thresholds(&self, folder: &Path) -> Result<bool> {
        Ok(L::holds(folder)?.thresholds)
    }

    fn has_skip(&self, folder: &Path) -> Result<bool> {
        Ok(L::holds(folder)?.skip)
    }

    fn load(&self, folder: &Path, activation: &dyn SparsityActivation, kind: Kind, device: Device) -> Result<(Dims, Parameters)> {
        let layers = files::layers_in(folder, L::PREFIX)?;
        let mut values = Vec::new();
        for index in 0..layers {
            let layer = L::load(folder, index, kind, device)?;
            values.extend([layer.w_enc, layer.b_enc, layer.w_dec, layer.b_dec]);
            values.extend(activation.params_with_thresholds(layer.thresholds.as_ref())?);
            match (layer.skip, self.skip) {
                (Some(skip), true) => values.push(skip),
                (None, false) => {}
                (Some(_), false) => {
                    return Err(Error::format(
                        folder,
                        format!("layer {index} has a linear skip `W_skip`, which a transcoder with `skip = false` has not"),
                    ));
                }
                (None, true) => {
                    return Err(Error::format(
                        folder,
                        format!("layer {index} has no linear skip `W_skip`, which a transcoder with `skip = true` has in every layer"),
                    ));
                }
            }
        }
        files::assemble(folder, self, activation, layers, values)
    }
}
