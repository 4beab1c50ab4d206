//! One forward pass of a prompt: what the transcoder's features do in it, and what it leaves unexplained.

use std::collections::BTreeMap;
use std::ops::Range;

use circuitlab_core::{BlockHook, Dictionary, FrozenPass, HookPoint, LanguageModel};
use tch::{Device, Kind, Tensor};

use super::nodes::ActiveFeature;
use super::prompt::Prompt;
use crate::model::Capture;
use crate::saved::SavedTranscoder;
use crate::{Error, Result};

/// Numbers of a layer's activations that are looked through at a time.
const BLOCK_NUMBERS: usize = 1 << 24;

/// A prompt's forward pass, the model as it is linear there, and the transcoder's view of it.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) frozen: FrozenPass<'a>,
    /// Where features read and write.
    pub(super) hooks: (BlockHook, BlockHook),
    pub(super) layers: Vec<PassLayer>,
    /// By layer, position and feature.
    pub(super) active: Vec<ActiveFeature>,
    /// Embeddings: `[position, d_model]`.
    pub(super) tokens: Tensor,
    pub(super) special: Vec<u32>,
    pub(super) positions: usize,
    pub(super) place: (Kind, Device),
    /// Patterns, `[head, query, key]`, where they were asked for.
    pub(super) patterns: Vec<Tensor>,
}

/// A layer in the pass.
#[derive(Debug)]
pub(super) struct PassLayer {
    pub(super) dictionary: Dictionary,
    /// The layers that its features write to.
    pub(super) targets: Range<usize>,
    /// What features read: `[position, d_model]`.
    pub(super) inputs: Tensor,
    /// What they stand for: `[position, d_model]`.
    pub(super) outputs: Tensor,
    /// What the features, the decoder's bias and the skip leave of the outputs, zero at special positions: `[position, d_model]`.
    pub(super) errors: Tensor,
    /// Its features in [`Pass::active`].
    pub(super) active: Range<usize>,
}

impl<'a> Pass<'a> {
    /// Runs the prompt.
    ///
    /// # Errors
    /// A transcoder of another model, tokens and contexts that the model refuses, a model that states no adjoint, a transcoder that is no
    /// linear dictionary, weights that are no numbers, and no active feature anywhere.
    pub(super) fn new(model: &'a dyn LanguageModel, saved: &SavedTranscoder, prompt: &Prompt, patterns: bool) -> Result<Self> {
        saved.check_model(model.info())?;
        prompt.check(model.info())?;
        let hooks = saved.hooks()?;
        let (device, kind) = model.placement();
        let layers = saved.dims.layers;
        let there = model.hook_points();
        if let Some(hook) = [hooks.0, hooks.1].into_iter().find(|hook| !there.contains(&HookPoint::block(0, *hook))) {
            let (folder, name) = (saved.folder.display(), &model.info().name);
            return Err(Error::Invalid(format!(
                "transcoder `{folder}` reads or writes at `{hook}`, a place that the model `{name}` does not have; `model show` lists those that it has"
            )));
        }
        let mut wanted: Vec<HookPoint> =
            (0..layers).flat_map(|layer| [hooks.0, hooks.1].map(|hook| HookPoint::block(layer, hook))).collect();
        wanted.push(HookPoint::Embed);
        if patterns {
            wanted.extend((0..layers).map(|layer| HookPoint::block(layer, BlockHook::Pattern)));
        }
        let mut capture = Capture::new(wanted);
        let ids: Vec<i64> = prompt.tokens.iter().map(|id| i64::from(*id)).collect();
        let ids = Tensor::from_slice(&ids).f_unsqueeze(0)?.f_to_device(device)?;
        let frozen = model.freeze(&ids, &mut capture)?.ok_or_else(|| {
            Error::Invalid(format!(
                "model family `{}` does not state how it is linear at a prompt, which attribution needs",
                model.info().family
            ))
        })?;
        if !all_finite(&frozen.logits)? {
            return Err(Error::Invalid(format!("the model `{}` gives logits that are no numbers for this prompt", model.info().name)));
        }
        let mut take = |point| -> Result<Tensor> { Ok(capture.take(point)?.f_squeeze_dim(0)?) };
        let tokens = take(HookPoint::Embed)?;
        let patterns = if patterns {
            (0..layers).map(|layer| take(HookPoint::block(layer, BlockHook::Pattern))).collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        let mut pass = Self {
            frozen,
            hooks,
            layers: Vec::with_capacity(layers),
            active: Vec::new(),
            tokens,
            special: prompt.special.clone(),
            positions: prompt.tokens.len(),
            place: (kind, device),
            patterns,
        };
        for layer in 0..layers {
            let inputs = take(HookPoint::block(layer, hooks.0))?;
            let outputs = take(HookPoint::block(layer, hooks.1))?;
            pass.add_layer(saved, layer, inputs, outputs)?;
        }
        if pass.active.is_empty() {
            let message = "no feature is active at any position but the special ones: there is nothing to attribute to";
            return Err(Error::Invalid(format!("transcoder `{}`: {message}", saved.folder.display())));
        }
        pass.set_errors()?;
        Ok(pass)
    }

    fn add_layer(&mut self, saved: &SavedTranscoder, layer: usize, inputs: Tensor, outputs: Tensor) -> Result<()> {
        let own = saved.transcoder.dictionary(&saved.params, layer)?;
        for (name, tensor) in [("W_enc", &own.w_enc), ("b_enc", &own.b_enc), ("W_dec", &own.w_dec), ("b_dec", &own.b_dec)] {
            if !all_finite(tensor)? {
                let folder = saved.folder.display();
                return Err(Error::Invalid(format!("transcoder `{folder}`: `{name}` of layer {layer} has entries that are no numbers")));
            }
        }
        let first = self.active.len();
        let rows = (BLOCK_NUMBERS / saved.dims.d_features.max(1)).clamp(1, self.positions);
        for start in (0..self.positions).step_by(rows) {
            let count = rows.min(self.positions - start);
            let read = inputs.f_narrow(0, start as i64, count as i64)?.f_to_kind(own.w_enc.kind())?;
            let acts = saved.encode(layer, &read)?;
            for position in self.special.iter().filter(|position| (start..start + count).contains(&(**position as usize))) {
                let _ = acts.f_select(0, i64::from(*position) - start as i64)?.f_zero_()?;
            }
            self.add_active(layer, start, &own, &read, &acts)?;
        }
        let targets = saved.transcoder.targets(saved.dims, layer)?;
        let active = first..self.active.len();
        let errors = outputs.shallow_clone();
        self.layers.push(PassLayer { dictionary: own, targets, inputs, outputs, errors, active });
        Ok(())
    }

    /// Adds the entries that are not zero, in order of position and feature.
    fn add_active(&mut self, layer: usize, start: usize, own: &Dictionary, read: &Tensor, acts: &Tensor) -> Result<()> {
        let places = acts.f_nonzero()?;
        let [rows, features] = [0, 1].map(|axis| places.select(1, axis));
        let values = acts.f_index(&[Some(&rows), Some(&features)])?;
        let dots = own.w_enc.f_index_select(0, &features)? * read.f_index_select(0, &rows)?;
        let pre_acts = dots.f_sum_dim_intlist(-1, false, None::<Kind>)? + own.b_enc.f_index_select(0, &features)?;
        let ids = |tensor: &Tensor| -> Result<Vec<i64>> { Ok(Vec::try_from(tensor.f_to_device(Device::Cpu)?)?) };
        let numbers =
            |tensor: &Tensor| -> Result<Vec<f32>> { Ok(Vec::try_from(tensor.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?)?) };
        let (rows, features) = (ids(&rows)?, ids(&features)?);
        let (values, pre_acts) = (numbers(&values)?, numbers(&pre_acts)?);
        for (at, (row, feature)) in rows.iter().zip(&features).enumerate() {
            self.active.push(ActiveFeature {
                layer: layer as u32,
                position: start as u32 + *row as u32,
                feature: *feature as u32,
                activation: values[at],
                pre_activation: pre_acts[at],
            });
        }
        Ok(())
    }

    /// What features, biases and skips leave of the outputs.
    fn set_errors(&mut self) -> Result<()> {
        for layer in 0..self.layers.len() {
            let own = &self.layers[layer];
            let mut left = (&own.outputs - &own.dictionary.b_dec.to_kind(self.place.0)).to_kind(self.place.0);
            if let Some(skip) = &own.dictionary.skip {
                left -= own.inputs.f_matmul(&skip.f_to_kind(self.place.0)?.f_tr()?)?;
            }
            self.layers[layer].errors = left;
        }
        for source in 0..self.layers.len() {
            let (places, targets) = (self.features_of(source)?, self.layers[source].targets.clone());
            for target in targets {
                let written = self.written(source, target, &places)?;
                let mut left = self.layers[target].errors.shallow_clone();
                let _ = left.f_index_add_(0, &places.positions, &-written)?;
            }
        }
        for layer in &self.layers {
            for position in &self.special {
                let _ = layer.errors.f_select(0, i64::from(*position))?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// The active features of a layer as tensors.
    fn features_of(&self, layer: usize) -> Result<Places> {
        Places::of(&self.active[self.layers[layer].active.clone()], self.place)
    }

    /// What active features of a layer write to another, times their activations: `[features, d_model]`.
    pub(super) fn written(&self, source: usize, target: usize, places: &Places) -> Result<Tensor> {
        let own = &self.layers[source];
        let slot = (target - own.targets.start) as i64;
        let rows = own.dictionary.w_dec.f_select(1, slot)?.f_index_select(0, &places.features)?;
        Ok(rows.f_to_kind(self.place.0)? * places.acts.f_unsqueeze(1)?)
    }

    /// The features at some places of [`active`](Self::active), by layer: the encoder rows of one layer's.
    pub(super) fn encoder_rows(&self, layer: usize, active: &[usize]) -> Result<Tensor> {
        let features: Vec<i64> = active.iter().map(|at| i64::from(self.active[*at].feature)).collect();
        let features = Tensor::from_slice(&features).f_to_device(self.place.1)?;
        Ok(self.layers[layer].dictionary.w_enc.f_index_select(0, &features)?.f_to_kind(self.place.0)?)
    }

    /// How many layers there are.
    pub(super) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The source layers that write to a layer, which lie side by side.
    pub(super) fn sources_of(&self, target: usize) -> Result<Range<usize>> {
        let writes = |layer: &usize| self.layers[*layer].targets.contains(&target);
        let sources: Vec<usize> = (0..=target).filter(writes).collect();
        match (sources.first(), sources.last()) {
            (Some(first), Some(last)) if last - first + 1 == sources.len() => Ok(*first..last + 1),
            (None, _) => Ok(target..target),
            _ => Err(Error::Invalid(format!("the layers that write to layer {target} have gaps, which attribution does not know"))),
        }
    }

    /// Everything of the pass by the name that graph files have for it.
    pub(super) fn tensors(&self) -> Result<BTreeMap<&'static str, Tensor>> {
        let stack = |of: &dyn Fn(&PassLayer) -> &Tensor| -> Result<Tensor> {
            Ok(Tensor::f_stack(&self.layers.iter().map(of).collect::<Vec<_>>(), 0)?)
        };
        let mut named = BTreeMap::from([
            ("feature_in", stack(&|layer| &layer.inputs)?),
            ("feature_out", stack(&|layer| &layer.outputs)?),
            ("error_vectors", stack(&|layer| &layer.errors)?),
            ("token_vectors", self.tokens.shallow_clone()),
            ("logits", self.frozen.logits.shallow_clone()),
            // The same: there is one forward pass.
            ("hf_logits", self.frozen.logits.shallow_clone()),
        ]);
        if !self.patterns.is_empty() {
            named.insert("attn_pattern", Tensor::f_stack(&self.patterns, 0)?);
        }
        for tensor in named.values_mut() {
            *tensor = tensor.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        }
        Ok(named)
    }
}

/// Active features of one layer, as tensors.
#[derive(Debug)]
pub(super) struct Places {
    /// `[features]`, int64.
    pub(super) positions: Tensor,
    /// `[features]`, int64.
    pub(super) features: Tensor,
    /// `[features]`.
    pub(super) acts: Tensor,
}

impl Places {
    pub(super) fn of(active: &[ActiveFeature], place: (Kind, Device)) -> Result<Self> {
        let ids = |of: &dyn Fn(&ActiveFeature) -> u32| -> Result<Tensor> {
            Ok(Tensor::from_slice(&active.iter().map(|feature| i64::from(of(feature))).collect::<Vec<_>>()).f_to_device(place.1)?)
        };
        let acts: Vec<f32> = active.iter().map(|feature| feature.activation).collect();
        Ok(Self {
            positions: ids(&|feature| feature.position)?,
            features: ids(&|feature| feature.feature)?,
            acts: Tensor::from_slice(&acts).f_to_device(place.1)?.f_to_kind(place.0)?,
        })
    }
}

/// Whether a tensor has no NaN and no infinity. A sum of finite numbers may overflow, so a sum that is no number is looked at again.
fn all_finite(tensor: &Tensor) -> Result<bool> {
    if tensor.f_sum(Kind::Float)?.f_double_value(&[])?.is_finite() {
        return Ok(true);
    }
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1)
}
