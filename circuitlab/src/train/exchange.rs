//! Matrices that ranks share out, on their way to a step, and gradients on their way from it.
//!
//! Where the mesh is sharded, a matrix is gathered from the ranks of the data axis as the step asks for it, the one after it meanwhile, and it
//! is gone once the step lets go of it: a rank has two or three matrices at a time beside its own rows. Its gradient is added up over these
//! ranks, each of which gets its rows of the sum. Where the mesh is not sharded, a matrix's gradient is added up as soon as it is whole, while
//! the step works on the next.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use circuitlab_core::parallel::{MeshAxis, Pending};
use circuitlab_core::transcoder::Exchange;
use circuitlab_core::{Error, Mesh, ParallelismStrategy, ParameterSpec, Parameters, Result};
use tch::Tensor;

/// Gradients on their way to their ranks at a time: each is as large as the matrix.
const SCATTERED_AT_A_TIME: usize = 2;

/// The exchange of one step.
pub(crate) struct Shares<'a> {
    strategy: &'a dyn ParallelismStrategy,
    mesh: Mesh,
    /// Those of all features.
    specs: &'a [ParameterSpec],
    /// Whether gradients that are whole now are those of the whole step.
    last: AtomicBool,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// What this rank owns of the parameters.
    values: Vec<Tensor>,
    /// The matrix that will be asked for next.
    ahead: Option<(usize, Pending)>,
    scattered: VecDeque<(usize, Pending)>,
    /// This rank's rows of the gradients that went away, by position.
    owned: Vec<Option<Tensor>>,
    summed: Vec<(usize, Pending)>,
}

impl<'a> Shares<'a> {
    pub(crate) fn new(strategy: &'a dyn ParallelismStrategy, specs: &'a [ParameterSpec], params: &Parameters) -> Self {
        let values: Vec<Tensor> = params.values().iter().map(Tensor::shallow_clone).collect();
        let under_way = UnderWay { owned: values.iter().map(|_| None).collect(), values, ..UnderWay::default() };
        Self { strategy, mesh: strategy.mesh(), specs, last: AtomicBool::new(true), under_way: Mutex::new(under_way) }
    }

    /// A micro-batch begins.
    pub(crate) fn begin(&self, last: bool) {
        self.last.store(last, Ordering::Relaxed);
    }

    /// The gradients of the whole batch, of what this rank owns; `gradients` are what the step gave.
    ///
    /// # Errors
    /// A rank that does not answer, and gradients that a step owes.
    pub(crate) fn finish(self, gradients: &[Tensor]) -> Result<Vec<Tensor>> {
        let under_way = self.under_way.into_inner().unwrap_or_else(PoisonError::into_inner);
        let UnderWay { scattered, mut owned, summed, .. } = under_way;
        let mut done: Vec<Option<Tensor>> = gradients.iter().map(|_| None).collect();
        let mut rest: Vec<Tensor> = Vec::new();
        let is_rest = |position: usize| !self.specs[position].is_sharded(&self.mesh) && !summed.iter().any(|(of, _)| *of == position);
        let positions: Vec<usize> = (0..gradients.len().min(self.specs.len())).filter(|position| is_rest(*position)).collect();
        rest.extend(positions.iter().map(|position| gradients[*position].shallow_clone()));
        self.strategy.reduce_gradients(&mut rest)?;
        positions.into_iter().zip(rest).for_each(|(position, gradient)| done[position] = Some(gradient));
        for (position, sum) in summed {
            done[position] = Some(sum.wait()?);
        }
        for (position, share) in scattered {
            add(&mut owned[position], share)?;
        }
        let whole = |(position, (done, owned)): (usize, (Option<Tensor>, Option<Tensor>))| {
            let name = self.specs.get(position).map_or("?", |spec| &spec.name);
            done.or(owned).ok_or_else(|| Error::Invalid(format!("the step gave no gradient of `{name}`")))
        };
        done.into_iter().zip(owned).enumerate().map(whole).collect()
    }

    /// Begins to gather a matrix.
    fn gather(&self, position: usize, own: &Tensor) -> Result<Pending> {
        let features = self.specs[position].owned(&Mesh { sharded: false, ..self.mesh }).len();
        self.strategy.begin_gather(MeshAxis::Data, own, features)
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_there(&self, position: usize) -> Result<()> {
        if position < self.specs.len() {
            return Ok(());
        }
        Err(Error::Invalid(format!("there is no parameter at place {position}; expected 0 to {}", self.specs.len().saturating_sub(1))))
    }
}

impl Exchange for Shares<'_> {
    fn lend(&self, position: usize, next: Option<usize>) -> Result<Tensor> {
        self.is_there(position)?;
        let mut under_way = self.under_way();
        if !self.takes(position) {
            return Ok(under_way.values[position].shallow_clone());
        }
        let gathered = match under_way.ahead.take() {
            Some((of, gathered)) if of == position => gathered,
            _ => self.gather(position, &under_way.values[position])?,
        };
        let whole = gathered.wait()?;
        if let Some(next) = next.filter(|next| self.takes(*next)) {
            under_way.ahead = Some((next, self.gather(next, &under_way.values[next])?));
        }
        Ok(whole)
    }

    fn takes(&self, position: usize) -> bool {
        self.specs.get(position).is_some_and(|spec| spec.is_sharded(&self.mesh))
    }

    fn ready(&self, position: usize, gradient: &Tensor) -> Result<()> {
        self.is_there(position)?;
        if self.takes(position) {
            let share = self.strategy.begin_scatter(MeshAxis::Data, gradient)?;
            let mut under_way = self.under_way();
            under_way.scattered.push_back((position, share));
            while under_way.scattered.len() > SCATTERED_AT_A_TIME {
                let Some((position, share)) = under_way.scattered.pop_front() else { break };
                add(&mut under_way.owned[position], share)?;
            }
        } else if self.mesh.data.size > 1 && self.last.load(Ordering::Relaxed) {
            let sum = self.strategy.begin_sum(MeshAxis::Data, gradient.shallow_clone())?;
            self.under_way().summed.push((position, sum));
        }
        Ok(())
    }
}

/// Adds a share to those of the micro-batches before.
fn add(sum: &mut Option<Tensor>, share: Pending) -> Result<()> {
    let share = share.wait()?;
    match sum {
        Some(sum) => drop(sum.f_add_(&share)?),
        None => *sum = Some(share),
    }
    Ok(())
}

impl fmt::Debug for Shares<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Shares").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}
