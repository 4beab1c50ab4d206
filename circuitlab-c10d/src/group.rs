//! A group of ranks, and its collective operations.

mod fault;
mod inner;
pub(crate) mod watch;

use std::sync::Arc;
use std::time::Duration;

use circuitlab_core::{Axis, Result};
use tch::{Kind, Tensor};

pub(crate) use inner::{Inner, Plan};

use crate::traffic::{Operation, Traffic};
use crate::work::Work;

/// What becomes of the tensors of all ranks, entry by entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// They are added up.
    Sum,
    /// The largest is taken.
    Max,
    /// The smallest is taken.
    Min,
}

/// How long operations may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A rank that is gone, hangs or is cut off ends the others' operations within this time.
    pub silent: Duration,
    /// An operation ends within this time though all ranks answer: one of them may be in a long computation, or write a large file.
    pub longest: Duration,
}

/// Some ranks of a run, which call the same operations in the same order.
///
/// Tensors are on the group's device, of f32, f64, bf16, f16 or whole numbers, of any strides. Every operation ends on all ranks with the same
/// bits. Two operations can be under way at once; more wait for them.
#[derive(Debug, Clone)]
pub struct ProcessGroup {
    inner: Arc<Inner>,
}

const KINDS: [Kind; 8] = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half, Kind::Int64, Kind::Int, Kind::Uint8, Kind::Int8];

impl ProcessGroup {
    pub(crate) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// This rank's place in the group.
    pub fn axis(&self) -> Axis {
        self.inner.axis()
    }

    /// What this rank has sent.
    pub fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }

    /// Reduces `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// A type that cannot be reduced; ranks that do not answer.
    pub fn all_reduce(&self, tensor: &mut Tensor, how: Reduction) -> Result<()> {
        self.start_all_reduce(tensor.shallow_clone(), how)?.wait().map(drop)
    }

    /// Begins to reduce `tensor` over all ranks, in its own memory.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_reduce`].
    pub fn start_all_reduce(&self, tensor: Tensor, how: Reduction) -> Result<Work> {
        let size = self.axis().size as u64;
        self.check(Operation::AllReduce, &tensor)?;
        let part = if tensor.is_contiguous() { tensor.shallow_clone() } else { tensor.f_contiguous()? };
        // A ring: each rank passes every chunk but one on while it is added up, and again when it is whole.
        let plan = Plan { operation: Operation::AllReduce, what: described(&tensor), bytes: 2 * bytes(&tensor) * (size - 1) / size };
        let skip = tensor.numel() == 0;
        let run = self.inner.begin(plan, skip, |group| group.all_reduce(&part, how as i32))?;
        Ok(Work::new(run, move || {
            let mut tensor = tensor;
            if !tensor.is_contiguous() {
                tensor.f_copy_(&part)?;
            }
            Ok(tensor)
        }))
    }

    /// Gives the tensors of all ranks, joined along the first axis in the order of the ranks. `rows[r]` is the length of rank r's first
    /// axis, which may differ from rank to rank; all else is the same.
    ///
    /// # Errors
    /// A tensor that does not have its rows; ranks that do not answer.
    pub fn all_gather(&self, own: &Tensor, rows: &[usize]) -> Result<Tensor> {
        self.start_all_gather(own, rows)?.wait()
    }

    /// Begins to gather. `own` is not to be written to before the end.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_gather`].
    pub fn start_all_gather(&self, own: &Tensor, rows: &[usize]) -> Result<Work> {
        let operation = Operation::AllGather;
        let size = self.check_rows(operation, own, rows, |own| rows.get(own).copied())?;
        let (least, most) = (rows.iter().min().copied().unwrap_or(0), rows.iter().max().copied().unwrap_or(0));
        let mut padded = own.f_contiguous()?;
        if least < most {
            // All send as much as the one that has most.
            let whole = Tensor::f_zeros(with_rows(own, most), (own.kind(), own.device()))?;
            whole.f_narrow(0, 0, own.size()[0])?.f_copy_(own)?;
            padded = whole;
        }
        let whole = Tensor::f_empty(with_rows(own, most * size), (own.kind(), own.device()))?;
        let plan = Plan { operation, what: described(own), bytes: bytes(&padded) * (size as u64 - 1) };
        if size == 1 {
            whole.shallow_clone().f_copy_(&padded)?;
        }
        let run = self.inner.begin(plan, whole.numel() == 0, |group| group.all_gather(&whole, &padded))?;
        let rows = rows.to_vec();
        Ok(Work::new(run, move || {
            if least == most {
                return Ok(whole);
            }
            let part = |(rank, rows): (usize, &usize)| whole.f_narrow(0, (rank * most) as i64, *rows as i64);
            let parts = rows.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
            Ok(Tensor::f_cat(&parts, 0)?)
        }))
    }

    /// Adds the tensors of all ranks up, and gives this rank's rows of the sum: `rows[r]` of the first axis go to rank r. Numbers are added
    /// in the order of the ranks, those of fewer than 32 bits in 32.
    ///
    /// # Errors
    /// A first axis that is not all rows; ranks that do not answer.
    pub fn reduce_scatter(&self, whole: &Tensor, rows: &[usize]) -> Result<Tensor> {
        self.start_reduce_scatter(whole, rows)?.wait()
    }

    /// Begins to add up. `whole` is not to be written to before the end.
    ///
    /// # Errors
    /// As [`ProcessGroup::reduce_scatter`].
    pub fn start_reduce_scatter(&self, whole: &Tensor, rows: &[usize]) -> Result<Work> {
        let operation = Operation::ReduceScatter;
        let size = self.check_rows(operation, whole, rows, |_| Some(rows.iter().sum()))?;
        let own = rows[self.axis().rank];
        let sent = whole.f_contiguous()?;
        let received = Tensor::f_empty(with_rows(whole, own * size), (whole.kind(), whole.device()))?;
        let all: usize = rows.iter().sum();
        let row = if all == 0 { 0 } else { bytes(whole) / all as u64 };
        let plan = Plan { operation, what: described(whole), bytes: row * (all - own) as u64 };
        if size == 1 {
            received.shallow_clone().f_copy_(&sent)?;
        }
        let pairs: Vec<[i64; 2]> = rows.iter().map(|rows| [own as i64, *rows as i64]).collect();
        let run = self.inner.begin(plan, whole.numel() == 0, |group| group.all_to_all(&received, &sent, &pairs))?;
        Ok(Work::new(run, move || added_up(&received, own as i64, size as i64)))
    }

    /// Gives every rank the tensor of the rank at `root`, in place. All have the same shape and type.
    ///
    /// # Errors
    /// A root that is not in the group; ranks that do not answer.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        self.start_broadcast(tensor.shallow_clone(), root)?.wait().map(drop)
    }

    /// Begins to broadcast.
    ///
    /// # Errors
    /// As [`ProcessGroup::broadcast`].
    pub fn start_broadcast(&self, tensor: Tensor, root: usize) -> Result<Work> {
        let (operation, Axis { rank, size }) = (Operation::Broadcast, self.axis());
        if root >= size {
            return Err(self.inner.wrong(operation, &format!("there is no rank {root} in the group; expected a root below {size}")));
        }
        self.check(operation, &tensor)?;
        let part = if tensor.is_contiguous() { tensor.shallow_clone() } else { tensor.f_contiguous()? };
        let plan = Plan { operation, what: described(&tensor), bytes: bytes(&tensor) * children((rank + size - root) % size, size) };
        let run = self.inner.begin(plan, tensor.numel() == 0, |group| group.broadcast(&part, root))?;
        Ok(Work::new(run, move || {
            let mut tensor = tensor;
            if !tensor.is_contiguous() {
                tensor.f_copy_(&part)?;
            }
            Ok(tensor)
        }))
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// Ranks that do not come.
    pub fn barrier(&self) -> Result<()> {
        let plan = Plan { operation: Operation::Barrier, what: String::new(), bytes: 0 };
        let run = self.inner.begin(plan, false, crate::ffi::RawGroup::barrier)?;
        Work::new(run, || Ok(())).wait()
    }

    /// What an operation can work on.
    fn check(&self, operation: Operation, tensor: &Tensor) -> Result<()> {
        let kind = tensor.f_kind()?;
        if !KINDS.contains(&kind) {
            let message = format!("cannot send tensors of {kind:?}; expected one of {KINDS:?}");
            return Err(self.inner.wrong(operation, &message));
        }
        if tensor.device() != self.inner.device {
            let message = format!("the tensor is on {:?}; those of this group are on {:?}", tensor.device(), self.inner.device);
            return Err(self.inner.wrong(operation, &message));
        }
        Ok(())
    }

    /// Checks how the first axis is shared; gives the number of ranks.
    fn check_rows(
        &self,
        operation: Operation,
        tensor: &Tensor,
        rows: &[usize],
        expected: impl FnOnce(usize) -> Option<usize>,
    ) -> Result<usize> {
        self.check(operation, tensor)?;
        let Axis { rank, size } = self.axis();
        let first = tensor.size().first().copied();
        if rows.len() == size && first.is_some() && first == expected(rank).and_then(|rows| i64::try_from(rows).ok()) {
            return Ok(size);
        }
        let message = format!("a tensor of shape {:?} does not go with the rows {rows:?} of {size} ranks", tensor.size());
        Err(self.inner.wrong(operation, &message))
    }
}

/// The sum of `size` tensors of `own` rows each that lie one after the other.
fn added_up(received: &Tensor, own: i64, size: i64) -> Result<Tensor> {
    let kind = received.kind();
    let wide = if matches!(kind, Kind::BFloat16 | Kind::Half) { Kind::Float } else { kind };
    let mut sum = received.f_narrow(0, 0, own)?.f_to_dtype(wide, false, true)?;
    for rank in 1..size {
        let _ = sum.f_add_(&received.f_narrow(0, rank * own, own)?.f_to_kind(wide)?)?;
    }
    Ok(sum.f_to_kind(kind)?)
}

fn with_rows(tensor: &Tensor, rows: usize) -> Vec<i64> {
    let mut shape = tensor.size();
    if let Some(first) = shape.first_mut() {
        *first = rows as i64;
    }
    shape
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// What other ranks are told of a tensor.
fn described(tensor: &Tensor) -> String {
    format!(" of {} {:?}", tensor.numel(), tensor.kind())
}

/// To how many ranks one passes a broadcast on, counted from the root: the ranks double in each round.
fn children(place: usize, size: usize) -> u64 {
    (0..usize::BITS - 1).map(|round| 1_usize << round).filter(|step| *step > place && place.saturating_add(*step) < size).count() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Device;

    use super::*;

    proptest! {
        #[test]
        fn a_broadcast_reaches_everybody_once(size in 1_usize..70) {
            prop_assert_eq!((0..size).map(|place| children(place, size)).sum::<u64>(), size as u64 - 1);
        }

        #[test]
        fn sums_of_parts_are_those_of_wholes(own in 0_i64..5, size in 1_i64..5) {
            let received = Tensor::arange(own * size * 3, (Kind::BFloat16, Device::Cpu)).view([own * size, 3]);
            let want = received.view([size, own, 3]).to_kind(Kind::Double).sum_dim_intlist(0, false, Kind::Double);
            let got = added_up(&received, own, size).expect("fits");
            prop_assert_eq!(got.kind(), Kind::BFloat16);
            prop_assert!(got == want.to_kind(Kind::BFloat16));
        }
    }
}
