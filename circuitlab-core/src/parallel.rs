//! Parallelism: a mesh of ranks with a `data` and a `feature` axis, and how ranks add up along them.

use std::fmt::Debug;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::traffic::Traffic;
use crate::{Error, Result};

/// One axis of the mesh, as one rank sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// This rank's place, from 0.
    pub rank: usize,
    /// How many ranks.
    pub size: usize,
}

impl Axis {
    /// An axis with one rank.
    pub const SINGLE: Self = Self { rank: 0, size: 1 };

    /// This rank's contiguous share of `0..len`; shares differ by at most one.
    pub fn share(self, len: usize) -> Range<usize> {
        let at = |rank: usize| (rank as u128 * len as u128 / self.size.max(1) as u128) as usize;
        at(self.rank)..at(self.rank + 1)
    }
}

/// The ranks of a run: those along `data` read different rows, those along `feature` own different features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    /// Ranks that read different rows.
    pub data: Axis,
    /// Ranks that own different features.
    pub feature: Axis,
    /// Whether ranks along `data` share out what they own too, see [`ParameterSpec::owned`](crate::ParameterSpec::owned).
    pub sharded: bool,
}

/// Which axis of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshAxis {
    /// Ranks that read different rows.
    Data,
    /// Ranks that own different features.
    Feature,
}

impl Mesh {
    /// A mesh with one rank.
    pub const SINGLE: Self = Self { data: Axis::SINGLE, feature: Axis::SINGLE, sharded: false };

    /// How many ranks.
    pub const fn ranks(&self) -> usize {
        self.data.size * self.feature.size
    }

    /// Whether this rank is the first, which does what one alone must do.
    pub const fn leads(&self) -> bool {
        self.data.rank == 0 && self.feature.rank == 0
    }

    /// This rank's share of so many features, where both axes share them out: along `data` that of what it has along `feature`.
    pub fn share(&self, features: usize) -> Range<usize> {
        let here = self.feature.share(features);
        let own = self.data.share(here.len());
        here.start + own.start..here.start + own.end
    }

    /// This rank's place on an axis.
    pub fn axis(&self, axis: MeshAxis) -> Axis {
        match axis {
            MeshAxis::Data => self.data,
            MeshAxis::Feature => self.feature,
        }
    }
}

/// An operation of all ranks of an axis that is under way, and owns the tensors that it reads and writes.
#[must_use = "an operation gives its tensor where it is waited for"]
pub struct Pending(Box<dyn FnOnce() -> Result<Tensor> + Send>);

impl Pending {
    /// One that `wait` brings to its end.
    pub fn new(wait: impl FnOnce() -> Result<Tensor> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// One that is at its end.
    pub fn done(tensor: Tensor) -> Self {
        Self::new(move || Ok(tensor))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// A rank that does not answer.
    pub fn wait(self) -> Result<Tensor> {
        (self.0)()
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// How the ranks of a run share its work. Initial weights, losses and results do not depend on it, up to summation order.
///
/// Conformance is checked by [`testing::strategy`](crate::testing::strategy).
pub trait ParallelismStrategy: Debug + Send + Sync {
    /// The mesh, as this rank sees it. Asked for once.
    fn mesh(&self) -> Mesh;

    /// Adds `tensor` up over an axis, in place, on every rank of it, to the same bits on all of them.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> Result<()>;

    /// Adds gradients up over the data axis: those that a step did not hand on while it went on. Each rank's are those of its own rows' share of the mean, so the sum is the
    /// gradient of the whole batch.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn reduce_gradients(&self, gradients: &mut [Tensor]) -> Result<()> {
        gradients.iter_mut().try_for_each(|gradient| self.sum(MeshAxis::Data, gradient))
    }

    /// Joins what the ranks of an axis have along the first axis of a tensor: each has its [`share`](Axis::share) of `rows`, and all get the
    /// whole. Of whole numbers, those below 2^53 are kept.
    ///
    /// # Errors
    /// A tensor that is not this rank's share; a rank that does not answer.
    fn gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Tensor> {
        let place = self.mesh().axis(axis);
        if place.size == 1 {
            return Ok(own.shallow_clone());
        }
        let mut whole = zeros_around(own, place, rows)?;
        // Nothing added to a number is the number.
        self.sum(axis, &mut whole)?;
        Ok(whole.f_to_kind(own.kind())?)
    }

    /// Begins what [`sum`](Self::sum) does: the result is in `tensor`'s own memory. All ranks begin the same operations in the same order, and may
    /// wait for them in any. Where a strategy cannot work beside its caller, it is done at once.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn begin_sum(&self, axis: MeshAxis, mut tensor: Tensor) -> Result<Pending> {
        self.sum(axis, &mut tensor)?;
        Ok(Pending::done(tensor))
    }

    /// Begins what [`gather`](Self::gather) does. `own` is not to be written to before the end.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    fn begin_gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Pending> {
        Ok(Pending::done(self.gather(axis, own, rows)?))
    }

    /// Begins to add `whole` up over an axis, of which this rank gets its [`share`](Axis::share) of the first axis. `whole` is not to be written to
    /// before the end.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn begin_scatter(&self, axis: MeshAxis, whole: &Tensor) -> Result<Pending> {
        let mut sum = whole.copy();
        self.sum(axis, &mut sum)?;
        let share = self.mesh().axis(axis).share(whole.size().first().map_or(0, |rows| *rows as usize));
        Ok(Pending::done(sum.f_narrow(0, share.start as i64, share.len() as i64)?.copy()))
    }

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// A rank that does not answer.
    fn barrier(&self) -> Result<()>;

    /// The device that this rank computes on where the run is to compute on `asked`: of several ranks on a host each may have its own.
    ///
    /// # Errors
    /// A rank that there is no device for.
    fn device(&self, asked: Device) -> Result<Device> {
        Ok(asked)
    }

    /// What this rank has sent so far, by axis and operation. Nothing where it is not counted.
    ///
    /// # Errors
    /// A strategy that cannot say.
    fn traffic(&self) -> Result<Vec<Traffic>> {
        Ok(Vec::new())
    }
}

/// A share of `rows` with zeros in the place of the others, of a type that can be added up.
fn zeros_around(own: &Tensor, place: Axis, rows: usize) -> Result<Tensor> {
    let share = place.share(rows);
    let mut shape = own.size();
    if shape.first().copied() != i64::try_from(share.len()).ok() {
        return Err(Error::Invalid(format!(
            "gathering: rank {} of {} has {} of {rows} rows, and a tensor of shape {shape:?} came",
            place.rank,
            place.size,
            share.len()
        )));
    }
    shape[0] = rows as i64;
    let kind = match own.kind() {
        Kind::Float | Kind::Double => own.kind(),
        Kind::BFloat16 | Kind::Half => Kind::Float,
        _ => Kind::Double,
    };
    let whole = Tensor::f_zeros(shape.as_slice(), (kind, own.device()))?;
    whole.f_narrow(0, share.start as i64, share.len() as i64)?.f_copy_(own)?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_cover_everything_once_and_evenly(len in 0_usize..1000, size in 1_usize..20) {
            let shares: Vec<_> = (0..size).map(|rank| Axis { rank, size }.share(len)).collect();
            prop_assert!(shares.iter().cloned().flatten().eq(0..len));
            let (least, most) = (len / size, len.div_ceil(size));
            prop_assert!(shares.iter().all(|share| (least..=most).contains(&share.len())));
        }
    }
}
