//! The window around a trained threshold, below it: above it lie the entries, which are known already.

use circuitlab_core::Result;
use tch::{Kind, Tensor};

use super::rows;
use crate::transcoders::dictionary::{Layer, wide};

/// For each feature either the silent entries in the window or those out of it, whichever are fewer.
#[derive(Debug)]
pub(super) struct Window {
    /// Whether those out of it, as 0 or 1: `[d_features]`.
    pub(super) turned: Tensor,
    /// How many silent entries are in the window: `[d_features]`.
    pub(super) silent: Tensor,
    edges: Vec<Edge>,
}

/// A block of features.
#[derive(Debug)]
pub(super) struct Edge {
    start: i64,
    turned: Tensor,
    silent: Tensor,
    set: Set,
}

#[derive(Debug)]
enum Set {
    /// The rows of each feature's entries, and where they begin.
    Rows { rows: Tensor, offsets: Tensor },
    /// Boolean, `[features, rows]`: where a dense product takes less time.
    Mask(Tensor),
}

/// The window of a block of features from `start` on.
///
/// # Shapes
/// `gap: [features, rows]`, threshold less pre-activation; `silent: [features]`, how many of each feature's are above 0.
pub(super) fn select(gap: &Tensor, half_window: f64, silent: &Tensor, start: i64) -> Result<Edge> {
    let mut below = gap.gt(0.0);
    let mut near = gap.lt(half_window).logical_and_(&below);
    let near_count = near.sum_dim_intlist(1, false, gap.kind());
    let turned = (&near_count * 2.0).gt_tensor(silent);
    // Where turned, those below and not near; near ones are below.
    let set = near.logical_xor_(&below.logical_and_(&turned.unsqueeze(1)));
    let places = set.f_nonzero()?;
    let most = super::dense_share(gap.device()) * gap.numel() as f64;
    let set = if places.size()[0] as f64 > most {
        Set::Mask(set)
    } else {
        let [features, rows] = [0, 1].map(|axis| places.select(1, axis).to_kind(Kind::Int));
        Set::Rows { offsets: rows::offsets(&features, gap.size()[0])?, rows }
    };
    Ok(Edge { start, turned: turned.to_kind(gap.kind()), silent: near_count, set })
}

impl Window {
    pub(super) fn join(edges: Vec<Edge>) -> Self {
        let all = |of: fn(&Edge) -> &Tensor| Tensor::cat(&edges.iter().map(of).collect::<Vec<_>>(), 0);
        Self { turned: all(|edge| &edge.turned), silent: all(|edge| &edge.silent), edges }
    }

    /// The sum of `dL/da` over the chosen entries of each feature: `[d_features]`.
    ///
    /// # Shapes
    /// `grad_reached: [rows, targets * d_model]`.
    pub(super) fn sums(&self, layer: &Layer<'_>, grad_reached: &Tensor) -> Result<Tensor> {
        let decoder = layer.flat_decoder();
        let sums = self.edges.iter().map(|edge| {
            let mut sums = match &edge.set {
                Set::Rows { rows, offsets } => rows::sums(grad_reached, rows, offsets, None)?,
                Set::Mask(mask) => mask.to_kind(grad_reached.kind()).f_matmul(grad_reached)?,
            };
            let decoder = wide(&decoder.narrow(0, edge.start, edge.turned.size()[0]));
            Ok(sums.f_mul_(&decoder)?.f_sum_dim_intlist(1, false, None::<Kind>)?)
        });
        Ok(Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0))
    }
}
