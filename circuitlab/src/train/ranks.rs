//! What ranks put together: their features for files, their rows for figures, and what they have to say to each other.
//!
//! One rank leads: it alone writes to the run folder, which all of them read. What it decided or failed at is told to the others, so that
//! none of them waits for a step that the others do not take.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Mesh, ParallelismStrategy, ParameterSpec, Parameters, Result};
use tch::{Device, Kind, Tensor};

use crate::Error;

/// Every feature of tensors that are of the shapes of parameters, in their order; `specs` are those of all features. Where this rank has
/// them all, and for what all ranks have, the tensors share memory with what is given.
pub(super) fn features<'a>(
    strategy: &dyn ParallelismStrategy,
    specs: &[ParameterSpec],
    tensors: impl IntoIterator<Item = &'a Tensor>,
) -> Result<Vec<Tensor>> {
    let mesh = strategy.mesh();
    let whole = |(spec, own): (&ParameterSpec, &Tensor)| {
        let mut whole = own.shallow_clone();
        if spec.is_sharded(&mesh) {
            let unsharded = Mesh { sharded: false, ..mesh };
            whole = strategy.gather(MeshAxis::Data, &whole, spec.owned(&unsharded).len())?;
        }
        match spec.shape.first() {
            Some(rows) if mesh.feature.size > 1 && spec.per_feature => {
                strategy.gather(MeshAxis::Feature, &whole, usize::try_from(*rows).unwrap_or(0))
            }
            _ => Ok(whole),
        }
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

/// Whether this rank is the one that writes.
pub(super) fn leads(strategy: &dyn ParallelismStrategy) -> bool {
    let mesh = strategy.mesh();
    mesh.data.rank == 0 && mesh.feature.rank == 0
}

/// The name of a rank in messages: its number, row by row of the mesh.
pub(super) fn number(strategy: &dyn ParallelismStrategy) -> usize {
    let mesh = strategy.mesh();
    mesh.data.rank * mesh.feature.size + mesh.feature.rank
}

/// What each rank says, by its [`number`].
pub(super) fn heard(strategy: &dyn ParallelismStrategy, own: &str) -> Result<Vec<String>> {
    let mesh = strategy.mesh();
    if mesh.data.size * mesh.feature.size == 1 {
        return Ok(vec![own.to_owned()]);
    }
    let table = |own: &Tensor| -> Result<Tensor> {
        let of_features = strategy.gather(MeshAxis::Feature, &own.unsqueeze(0), mesh.feature.size)?;
        strategy.gather(MeshAxis::Data, &of_features.unsqueeze(0), mesh.data.size)
    };
    let lengths = Vec::<i64>::try_from(table(&Tensor::from(own.len() as i64))?.flatten(0, -1))?;
    let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
    let mut padded = own.as_bytes().to_vec();
    padded.resize(longest as usize, 0);
    let texts = table(&Tensor::from_slice(&padded))?.to_device(Device::Cpu).view([-1, longest]);
    let text = |(number, length): (usize, &i64)| -> Result<String> {
        let bytes = Vec::<u8>::try_from(texts.get(number as i64).f_narrow(0, 0, *length)?)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    lengths.iter().enumerate().map(text).collect()
}

/// What the leader finds by `decide`, or the error that it meets, on every rank.
pub(super) fn told(strategy: &dyn ParallelismStrategy, decide: impl FnOnce() -> crate::Result<String>) -> crate::Result<String> {
    const FOUND: char = '+';
    let decided = if leads(strategy) { decide() } else { Ok(String::new()) };
    let own = match &decided {
        Ok(found) => format!("{FOUND}{found}"),
        Err(error) => error.to_string(),
    };
    let said = heard(strategy, &own)?.swap_remove(0);
    if leads(strategy) {
        return decided;
    }
    said.strip_prefix(FOUND).map(str::to_owned).ok_or_else(|| Error::Invalid(format!("rank 0, which writes for all, failed: {said}")))
}
