//! Sums of chosen rows, and products of pairs of rows. Groups of entries are contiguous: `offsets` has where each begins, and the end.

use circuitlab_core::Result;
use tch::{Kind, Tensor};

/// `embedding_bag` adds up, rather than taking the mean or the largest.
const SUM: i64 = 0;
/// No index stands for nothing.
const NO_PADDING: i64 = -1;

/// `out[g] = sum over the entries e of group g of weight_e * from[index_e]`.
///
/// # Shapes
/// `from: [n, width]`, `indices` and `weights: [entries]`, `offsets: [groups + 1]`; gives `[groups, width]`. Indices and offsets are of
/// 32 bits.
pub(super) fn sums(from: &Tensor, indices: &Tensor, offsets: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    let groups = offsets.size()[0] - 1;
    if indices.numel() == 0 {
        return Ok(Tensor::f_zeros([groups, from.size()[1]], (from.kind(), from.device()))?);
    }
    let (sums, ..) = Tensor::f_internal_embedding_bag_forward_only(from, indices, offsets, false, SUM, false, weights, true, NO_PADDING)?;
    Ok(sums)
}

/// `out[e] = <a[i_e], b[j_e]>`: what the sums' weights get for a gradient.
///
/// # Shapes
/// `a: [n, width]`, `b: [m, width]`, `i` and `j: [entries]`.
pub(super) fn products(a: &Tensor, i: &Tensor, b: &Tensor, j: &Tensor) -> Result<Tensor> {
    if i.numel() == 0 {
        return Ok(Tensor::f_zeros([0], (a.kind(), a.device()))?);
    }
    let no_offsets = Tensor::zeros([0], (Kind::Int, a.device()));
    Ok(Tensor::f_internal_embedding_bag_per_sample_weights_backward(a, b, j, &no_offsets, i, SUM, NO_PADDING)?)
}

/// Sums over the entries of each group of several numbers of each entry.
///
/// # Shapes
/// `numbers: [entries]` each; gives `[groups]` each.
pub(super) fn totals<const N: usize>(numbers: &[Tensor; N], offsets: &Tensor) -> Result<[Tensor; N]> {
    let entries = Tensor::stack(numbers, 1);
    let each = Tensor::arange(entries.size()[0], (Kind::Int, entries.device()));
    let sums = sums(&entries, &each, offsets, None)?;
    Ok(std::array::from_fn(|place| sums.select(1, place as i64).contiguous()))
}

/// Where each of the groups `0..count` begins in `groups`, which has the group of every entry, in order; and the end: `[count + 1]`.
pub(super) fn offsets(groups: &Tensor, count: i64) -> Result<Tensor> {
    let options = (Kind::Int, groups.device());
    if groups.numel() == 0 {
        return Ok(Tensor::f_zeros([count + 1], options)?);
    }
    Ok(Tensor::arange(count + 1, options).f_searchsorted::<Tensor>(groups, true, false, "left", None)?)
}

/// How many entries each group has, in the type `kind`.
pub(super) fn counts(offsets: &Tensor, kind: Kind) -> Tensor {
    let groups = offsets.size()[0] - 1;
    (offsets.narrow(0, 1, groups) - offsets.narrow(0, 0, groups)).to_kind(kind)
}
