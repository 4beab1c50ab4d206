//! What `topk` and `batchtopk` share: the largest entries of each row.

use circuitlab_core::{Activated, Error, Result};
use tch::{Kind, Tensor};

/// Refuses a `k` of 0. One above the number of features is all of them: a default must do for a small dictionary too.
pub(super) fn check_k(key: &str, k: usize) -> Result<()> {
    if k > 0 {
        return Ok(());
    }
    Err(Error::config(key, "expected a whole number above 0, got 0"))
}

/// Keeps the `k` largest entries of each row, and of these with `positive` only those above 0.
///
/// # Shapes
/// `pre_acts: [rows, entries]`.
pub(super) fn activate(pre_acts: &Tensor, k: usize, positive: bool) -> Result<Activated> {
    let k = pre_acts.size()[1].min(i64::try_from(k).unwrap_or(i64::MAX));
    // By index and not by comparing with the smallest kept value, which equal ones would join.
    let (_, places) = pre_acts.detach().f_topk(k, 1, true, false)?;
    let mut active = Tensor::f_zeros(pre_acts.size(), (Kind::Bool, pre_acts.device()))?;
    let _ = active.f_scatter_value_(1, &places, 1_i64)?;
    if positive {
        let _ = active.logical_and_(&pre_acts.gt(0.0));
    }
    Ok(Activated { acts: pre_acts * &active, active })
}
