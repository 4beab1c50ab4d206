//! What a run changes as it goes: parameters, moments, counters.

use std::path::Path;
use std::sync::Arc;

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{
    Dims, Mesh, ParallelismStrategy, ParameterSpec, Parameters, Precision, Registry, Scope, SparsityActivation, StepOutput, Transcoder,
};
use tch::{Device, Kind, Tensor};

use super::checkpoint::{Checkpoint, SavedState, TrainTensor};
use super::config::TrainConfig;
use super::optimiser::Adam;
use super::ranks;
use super::step::pieces;
use crate::cache::Rows;
use crate::saved::SavedActivation;
use crate::sink::Sinks;
use crate::{Error, Result};

/// The plugins of a run, built.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) transcoder: Box<dyn Transcoder>,
    pub(super) activation: Box<dyn SparsityActivation>,
    /// One for all transcoders of a run.
    pub(super) strategy: Arc<dyn ParallelismStrategy>,
    pub(super) sinks: Sinks,
    pub(super) dims: Dims,
    /// What its saved folders say of the activation.
    pub(super) saved_as: SavedActivation,
}

/// More numbers than any machine holds: a size beyond it is a slip of the keyboard.
const MOST_NUMBERS: u128 = 1 << 42;

impl Parts {
    /// Looks the plugins up and checks the sizes, and that they go together.
    pub(super) fn build(registry: &Registry, config: &TrainConfig, rows: &Rows, strategy: &Arc<dyn ParallelismStrategy>) -> Result<Self> {
        let origin = rows.identity();
        let dims = Dims { layers: origin.layers, d_model: origin.d_model, d_features: config.size.features(origin.d_model)? };
        check_sizes(config, dims)?;
        crate::device::resolve(config.compute.device)?;
        let activation = registry.build::<dyn SparsityActivation>(&config.activation)?;
        let mesh = strategy.mesh();
        check_shares(config, dims, mesh)?;
        check_scope(&config.activation.name, activation.scope(), mesh.data.size, mesh.feature.size)?;
        if activation.scope() == Scope::Batch && pieces(&config.data, mesh.data) > 1 {
            return Err(Error::Invalid(format!(
                "activation `{}` compares all rows of a batch, so `data.micro_batch_rows` cannot split them; leave it away",
                config.activation.name
            )));
        }
        let transcoder = registry.build::<dyn Transcoder>(&config.transcoder)?;
        if mesh.sharded && mesh.data.size > 1 && !transcoder.takes_shards() {
            return Err(Error::Invalid(format!(
                "transcoder `{}` needs all rows of its matrices on each rank, and this strategy shares them out; use `ddp`, `feature-sharded` or `hybrid` without `shard`",
                config.transcoder.name
            )));
        }
        Ok(Self {
            transcoder,
            saved_as: SavedActivation::of(registry, &config.activation, &*activation)?,
            activation,
            strategy: Arc::clone(strategy),
            sinks: Sinks::build(registry, &config.metrics.sinks)?,
            dims,
        })
    }
}

/// Refuses sizes that no machine has room for.
pub(super) fn check_sizes(config: &TrainConfig, dims: Dims) -> Result<()> {
    let product = |factors: &[usize]| factors.iter().fold(1_u128, |product, factor| product.saturating_mul(*factor as u128));
    for (what, numbers) in [
        ("`size.d_features` or `size.expansion`", product(&[dims.layers, dims.layers, dims.d_model, dims.d_features])),
        ("`data.batch_rows`", product(&[config.data.batch_rows, dims.layers, dims.d_model.max(dims.d_features)])),
        ("`init.rows`", product(&[config.init.rows, dims.layers, dims.d_model.max(dims.d_features)])),
    ] {
        if numbers > MOST_NUMBERS {
            return Err(Error::Invalid(format!("{what} asks for {numbers} numbers in memory; expected at most {MOST_NUMBERS}")));
        }
    }
    Ok(())
}

/// Refuses a mesh with ranks that would have nothing to do.
fn check_shares(config: &TrainConfig, dims: Dims, mesh: Mesh) -> Result<()> {
    let Mesh { data, feature, .. } = mesh;
    if config.data.batch_rows < data.size {
        return Err(Error::Invalid(format!("`data.batch_rows` is {}, too few for {} data ranks", config.data.batch_rows, data.size)));
    }
    if dims.d_features < feature.size {
        return Err(Error::Invalid(format!("{} features are too few for {} feature ranks", dims.d_features, feature.size)));
    }
    Ok(())
}

/// Refuses a mesh that splits what decides whether a feature is active.
pub(super) fn check_scope(activation: &str, scope: Scope, data: usize, feature: usize) -> Result<()> {
    let message = match scope {
        Scope::Row if feature > 1 => format!(
            "activation `{activation}` compares all features of a row, so they cannot be split over {feature} ranks; use a mesh whose feature axis has 1 rank"
        ),
        Scope::Batch if data.saturating_mul(feature) > 1 => format!(
            "activation `{activation}` compares all features of all rows of a batch, so they cannot be split over {data} x {feature} ranks; use a mesh of 1 rank"
        ),
        _ => return Ok(()),
    };
    Err(Error::Invalid(message))
}

/// Parameters, optimiser and counters.
#[derive(Debug)]
pub(super) struct TrainState {
    pub(super) step: u64,
    /// The parameters of all features.
    pub(super) specs: Vec<ParameterSpec>,
    /// What this rank owns of them.
    pub(super) params: Parameters,
    pub(super) adam: Adam,
    /// Rows of all ranks since each of this rank's features last fired on this rank's: `[layer, features here]`, int64.
    pub(super) silent_rows: Tensor,
}

impl TrainState {
    /// Fresh parameters, with encoder biases set from `rows: [rows, layer, d_model]`.
    pub(super) fn start(parts: &Parts, config: &TrainConfig, rows: &Tensor) -> Result<Self> {
        let (kind, device) = placement(config);
        let specs = parts.transcoder.parameters(parts.dims, &*parts.activation)?;
        // In all bits until the biases are set; what is computed with is rounded afterwards.
        let mesh = parts.strategy.mesh();
        let seed = config.init.seed.unwrap_or(config.seed);
        let mut params = Parameters::init_part(&specs, &mesh, seed, Precision::Full.kind(kind), device)?;
        let rate = config.init.share(parts.dims.d_features as f64);
        calibrate(parts, &mut params, rows, rate)?;
        let mut adam = new_adam(config, &specs, &params, &mesh);
        adam.round(&mut params, kind)?;
        let here = mesh.feature.share(parts.dims.d_features).len();
        let silent_rows = Tensor::zeros([parts.dims.layers as i64, here as i64], (Kind::Int64, device));
        Ok(Self { step: 0, specs, params, adam, silent_rows })
    }

    /// Goes on from a checkpoint, of which each rank reads its own rows. Every rank fails where one does.
    pub(super) fn resume(parts: &Parts, config: &TrainConfig, folder: &Path) -> Result<(Self, SavedState)> {
        ranks::all_well(&*parts.strategy, Self::read(parts, config, folder))
    }

    fn read(parts: &Parts, config: &TrainConfig, folder: &Path) -> Result<(Self, SavedState)> {
        let (kind, device) = placement(config);
        let specs = parts.transcoder.parameters(parts.dims, &*parts.activation)?;
        let mesh = parts.strategy.mesh();
        let saved = Checkpoint::open(folder, parts.dims.layers)?;
        saved.check(ranks::number(&*parts.strategy), mesh.ranks())?;
        let mut params = saved.parameters(&specs, &mesh, Precision::Full.kind(kind), device)?;
        let mut adam = new_adam(config, &specs, &params, &mesh);
        let read = |at: usize, name: &str, kind| saved.rows(&specs[at], name, specs[at].owned(&mesh), kind, device);
        adam.resume(&params, saved.state.step, read)?;
        adam.round(&mut params, kind)?;
        let silent_rows = saved.silent_rows(mesh.feature.share(parts.dims.d_features), device)?;
        Ok((Self { step: saved.state.step, specs, params, adam, silent_rows }, saved.state))
    }

    /// Whether every parameter is a number.
    pub(super) fn is_finite(&self) -> bool {
        self.params.values().iter().all(|value| value.isfinite().all().to_kind(Kind::Int64).int64_value(&[]) != 0)
    }

    /// Counts the rows, of all ranks, on which each feature stayed silent.
    pub(super) fn count_silence(&mut self, output: &StepOutput, rows: i64) {
        let fired = output.active_rows.gt(0.0);
        let _ = self.silent_rows.g_add_scalar_(rows);
        let _ = self.silent_rows.masked_fill_(&fired, 0);
    }

    /// Dead features of each layer, over all ranks.
    pub(super) fn dead(&self, after_rows: u64, strategy: &dyn ParallelismStrategy) -> Result<Vec<i64>> {
        Ok(ranks::dead(strategy, &self.silent_rows, i64::try_from(after_rows).unwrap_or(i64::MAX))?)
    }

    /// What a checkpoint holds beside the transcoder, as this rank has it; `masters` are the parameters in all their bits.
    pub(super) fn training(&mut self, masters: &Parameters, parts: &Parts) -> Result<Vec<TrainTensor>> {
        let (strategy, features) = (&*parts.strategy, parts.dims.d_features);
        let mesh = strategy.mesh();
        let of = |spec: &ParameterSpec, name: &str, tensor: &Tensor| TrainTensor {
            layer: spec.layer,
            name: name.to_owned(),
            tensor: tensor.shallow_clone(),
            owned: spec.owned(&mesh),
            rows: spec.shape.first().map_or(1, |rows| usize::try_from(*rows).unwrap_or(0)),
            per_feature: spec.per_feature,
        };
        let mut all: Vec<TrainTensor> = self.specs.iter().zip(masters.values()).map(|(spec, value)| of(spec, &spec.name, value)).collect();
        let moments = self.adam.saved_moments(&self.params)?;
        all.extend(moments.iter().map(|(position, name, tensor)| of(&self.specs[*position], name, tensor)));
        let here = mesh.feature.share(features);
        for layer in 0..parts.dims.layers {
            let least = ranks::least(strategy, &self.silent_rows.get(layer as i64))?;
            all.push(TrainTensor::silent_rows(layer, least, here.clone(), features));
        }
        Ok(all)
    }
}

/// Sets the biases from `rows: [rows, layer, d_model]`. Ranks that have the same features share them out: each sets some, and tells the
/// others.
fn calibrate(parts: &Parts, params: &mut Parameters, rows: &Tensor, rate: f64) -> Result<()> {
    let (strategy, mesh) = (&*parts.strategy, parts.strategy.mesh());
    let here = mesh.feature.share(parts.dims.d_features).len();
    if mesh.data.size == 1 {
        return Ok(parts.transcoder.calibrate(params, &*parts.activation, rows, rate)?);
    }
    let own = mesh.data.share(here);
    let cut = |(spec, value): (&ParameterSpec, &Tensor)| {
        let whole = spec.per_feature && !spec.is_sharded(&mesh);
        let value = if whole { value.f_narrow(0, own.start as i64, own.len() as i64)? } else { value.shallow_clone() };
        Ok((ParameterSpec { shape: value.size(), ..spec.clone() }, value))
    };
    let parts_of = params.specs().iter().zip(params.values()).map(cut).collect::<circuitlab_core::Result<Vec<_>>>()?;
    let (specs, values) = parts_of.into_iter().unzip();
    let mut part = Parameters::new(specs, values)?;
    let set = if own.is_empty() { Ok(()) } else { parts.transcoder.calibrate(&mut part, &*parts.activation, rows, rate) };
    ranks::all_well(strategy, set.map_err(Error::from))?;
    for (position, spec) in part.specs().iter().enumerate().filter(|(_, spec)| spec.per_feature && spec.shape.len() == 1) {
        let whole = strategy.gather(MeshAxis::Data, &part.values()[position], here)?;
        params.set(&spec.name, whole)?;
    }
    Ok(())
}

/// Moments of zero, of what a rank owns of `specs`.
fn new_adam(config: &TrainConfig, specs: &[ParameterSpec], params: &Parameters, mesh: &Mesh) -> Adam {
    Adam::new(config.optimiser.clone(), params).of_part(specs.iter().map(|spec| spec.owned(mesh).start))
}

/// Where and in what type a run computes.
pub(super) fn placement(config: &TrainConfig) -> (Kind, Device) {
    (config.compute.dtype.into(), config.compute.device.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_must_not_split_what_an_activation_compares() {
        for (scope, data, feature, fits) in [
            (Scope::Entry, 2, 2, true),
            (Scope::Row, 2, 1, true),
            (Scope::Row, 1, 2, false),
            (Scope::Batch, 1, 1, true),
            (Scope::Batch, 2, 1, false),
            (Scope::Batch, 1, 2, false),
        ] {
            assert_eq!(check_scope("mine", scope, data, feature).is_ok(), fits, "{scope:?} on {data} x {feature}");
        }
        let error = check_scope("mine", Scope::Row, 1, 2).expect_err("two ranks");
        assert_eq!(
            error.to_string(),
            "activation `mine` compares all features of a row, so they cannot be split over 2 ranks; use a mesh whose feature axis has 1 rank"
        );
    }
}
