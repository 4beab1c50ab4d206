//! What ranks put together: their rows for figures, and what they have to say to each other.
//!
//! One rank leads: it alone writes to the run folder, but for checkpoints, which all write. What it decided or failed at is told to the others, so that
//! none of them waits for a step that the others do not take.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{ParallelismStrategy, Result};
use tch::{Device, Kind, Tensor};

use crate::Error;

/// Counters of one layer, `[features here]`: the least over the ranks of the data axis.
pub(super) fn least(strategy: &dyn ParallelismStrategy, own: &Tensor) -> Result<Tensor> {
    let ranks = strategy.mesh().data.size;
    if ranks == 1 {
        return Ok(own.shallow_clone());
    }
    Ok(strategy.gather(MeshAxis::Data, &own.unsqueeze(0), ranks)?.f_amin(0, false)?)
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
    strategy.mesh().leads()
}

/// The name of a rank in messages: its number, row by row of the mesh.
pub(super) fn number(strategy: &dyn ParallelismStrategy) -> usize {
    let mesh = strategy.mesh();
    mesh.data.rank * mesh.feature.size + mesh.feature.rank
}

/// What each rank says, by its [`number`].
pub(super) fn heard(strategy: &dyn ParallelismStrategy, own: &str) -> Result<Vec<String>> {
    let mesh = strategy.mesh();
    if mesh.ranks() == 1 {
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
    let own = if leads(strategy) { decide() } else { Ok(String::new()) };
    Ok(said(strategy, own)?.swap_remove(0))
}

/// What each rank has to say, by its [`number`]; where any of them met an error, that error on all of them.
pub(super) fn said(strategy: &dyn ParallelismStrategy, own: crate::Result<String>) -> crate::Result<Vec<String>> {
    const FOUND: char = '+';
    let text = match &own {
        Ok(found) => format!("{FOUND}{found}"),
        Err(error) => chain(error),
    };
    let heard = heard(strategy, &text)?;
    own?;
    let found = |(number, text): (usize, String)| match text.strip_prefix(FOUND) {
        Some(found) => Ok(found.to_owned()),
        None => Err(Error::Invalid(format!("rank {number} failed: {text}"))),
    };
    heard.into_iter().enumerate().map(found).collect()
}

/// The same where there is nothing to say but whether it went well.
pub(super) fn all_well<T>(strategy: &dyn ParallelismStrategy, own: crate::Result<T>) -> crate::Result<T> {
    let (own, text) = match own {
        Ok(own) => (Some(own), Ok(String::new())),
        Err(error) => (None, Err(error)),
    };
    said(strategy, text)?;
    own.ok_or_else(|| Error::Invalid("this rank failed".to_owned()))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
