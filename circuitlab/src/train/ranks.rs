//! What ranks put together: their features for files, their rows for figures.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{ParallelismStrategy, ParameterSpec, Parameters, Result};
use tch::{Kind, Tensor};

/// Every feature of tensors that are of the shapes of parameters, in their order; `specs` are those of all features. Where this rank has
/// them all, and for what all ranks have, the tensors share memory with what is given.
pub(super) fn features<'a>(
    strategy: &dyn ParallelismStrategy,
    specs: &[ParameterSpec],
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Vec<Tensor>> {
    let is_split = strategy.mesh().feature.size > 1;
    let whole = |(spec, own): (&ParameterSpec, &Tensor)| match spec.shape.first() {
        Some(rows) if is_split && spec.per_feature => strategy.gather(MeshAxis::Feature, own, usize::try_from(*rows).unwrap_or(0)),
        _ => Ok(own.shallow_clone()),
    };
    specs.iter().zip(tensors).map(whole).collect()
}

/// The same of parameters.
pub(super) fn parameters(strategy: &dyn ParallelismStrategy, specs: &[ParameterSpec], own: &Parameters) -> Result<Parameters> {
    Parameters::new(specs.to_vec(), features(strategy, specs, own.values())?)
}

/// Counters of all features: `[layer, d_features]` of `own: [layer, features here]`, the least over the ranks of the data axis.
pub(super) fn least(strategy: &dyn ParallelismStrategy, own: &Tensor, d_features: usize) -> Result<Tensor> {
    let mesh = strategy.mesh();
    let mut least = own.shallow_clone();
    if mesh.data.size > 1 {
        least = strategy.gather(MeshAxis::Data, &own.unsqueeze(0), mesh.data.size)?.amin(0, false);
    }
    if mesh.feature.size > 1 {
        least = strategy.gather(MeshAxis::Feature, &least.tr().f_contiguous()?, d_features)?.tr().f_contiguous()?;
    }
    Ok(least)
}

/// For each layer how many features have been silent for `limit` rows on every rank of the data axis, over all ranks: `[layer]` of
/// `silent: [layer, features here]`.
pub(super) fn dead(strategy: &dyn ParallelismStrategy, silent: &Tensor, limit: i64) -> Result<Vec<i64>> {
    let mesh = strategy.mesh();
    let mut votes = silent.ge(limit).to_kind(Kind::Double);
    if mesh.data.size > 1 {
        strategy.sum(MeshAxis::Data, &mut votes)?;
    }
    let mut dead = votes.ge(mesh.data.size as f64).sum_dim_intlist(1, false, Kind::Double);
    if mesh.feature.size > 1 {
        strategy.sum(MeshAxis::Feature, &mut dead)?;
    }
    let dead = Vec::<f64>::try_from(dead)?;
    Ok(dead.into_iter().map(|count| count as i64).collect())
}
