//! Head loadings: which attention heads carry an edge from one position to another.
//!
//! Whatever reaches a target from an earlier position enters the target's position by a head, once: positions only grow on the way. So an edge is the
//! sum over all heads of what enters by them, each taken with everything that it did on its way before, other heads included. Ablating a head at the
//! target's position, with patterns and norms held, takes away just its loading.

use std::collections::BTreeMap;

use circuitlab_core::{Passage, Span};
use tch::{Kind, Tensor};

use super::attribute::Attribution;
use super::pass::Pass;
use super::qk::Look;
use super::sweep::{Place, Sweep, Swept, Targets};
use super::{Graph, NodeKind, Pruned};
use crate::{Progress, Result};

/// Edges that cross positions, split over heads.
#[derive(Debug)]
pub struct HeadLoadings {
    /// Target and source nodes: `[edges]`.
    pub edges: Vec<(usize, usize)>,
    /// Weights of the edges: `[edges]`.
    pub weights: Vec<f32>,
    /// What enters the target's position by each head; sums to the weight: `[edges, layer, head]`, f32 on the CPU.
    pub loadings: Tensor,
}

/// Bytes of gradients of heads that are worked on at a time.
const BLOCK_BYTES: usize = 128 << 20;

impl Sweep<'_> {
    /// Splits the rows of targets at one position over the heads by which their sources enter it.
    ///
    /// # Shapes
    /// Gives `[targets, layer, head, columns]`, features in the order of [`Pass::active`]. Sources at the targets' own position, which no head
    /// has to carry, are zero.
    pub(super) fn head_rows(&self, targets: &Targets, heads: usize) -> Result<Tensor> {
        let count = targets.gradient.size()[0];
        let shape = [count, self.pass.depth() as i64, heads as i64, self.columns.width()];
        let rows = Tensor::f_zeros(shape, self.pass.place)?;
        let position = targets.positions[0];
        if position == 0 {
            return Ok(rows);
        }
        let at = Tensor::f_full([count], position, (Kind::Int64, self.pass.place.1))?;
        let local = Local { pass: self.pass, at: &at };
        let mut gradient = self.pass.frozen.adjoint.pull(self.passage(targets), &targets.gradient, &at)?;
        let bytes = heads * position as usize * gradient.size()[1] as usize * self.pass.place.0.elt_size_in_bytes();
        let most = (BLOCK_BYTES / bytes.max(1)).clamp(1, count as usize) as i64;
        // A feature of a serial block reads what its own layer's attention has added; logits read what the last block leaves.
        let own = targets.place == Place::Features && !self.pass.frozen.parallel;
        let last = if own { targets.layer + 1 } else { targets.layer };
        for layer in (0..last).rev() {
            let from_mlp = if own && layer == targets.layer { None } else { local.through_skip(&gradient, layer)? };
            if !self.pass.frozen.parallel {
                gradient = from_mlp.iter().fold(gradient, |sum, skip| sum + skip);
            }
            let mut stayed = Vec::new();
            for first in (0..count).step_by(most as usize) {
                let some = most.min(count - first);
                let by_head = self.pass.frozen.adjoint.heads(layer, &gradient.f_narrow(0, first, some)?, position)?;
                stayed.push(by_head.f_select(2, position)?.f_sum_dim_intlist(1, false, None::<Kind>)?);
                let came = by_head.f_narrow(2, 0, position)?.f_reshape([some * heads as i64 * position, -1])?;
                let spans = vec![Span { targets: some * heads as i64, positions: position }];
                let swept = Swept { gradient: came, spans, rows: self.blank(some * heads as i64)? };
                let entered = self.finish(&self.down(swept, layer)?)?.f_view([some, heads as i64, -1])?;
                rows.f_select(1, layer as i64)?.f_narrow(0, first, some)?.f_copy_(&entered)?;
            }
            // Not in place: it may be what the caller has.
            gradient = &gradient + Tensor::f_cat(&stayed, 0)?;
            if self.pass.frozen.parallel {
                gradient = from_mlp.iter().fold(gradient, |sum, skip| sum + skip);
            }
        }
        Ok(rows)
    }
}

/// Gradients that stay at one position.
struct Local<'p> {
    pass: &'p Pass<'p>,
    at: &'p Tensor,
}

impl Local<'_> {
    /// What a layer's skip pulls from the stream after it to what its MLP reads.
    fn through_skip(&self, gradient: &Tensor, layer: usize) -> Result<Option<Tensor>> {
        let Some(skip) = &self.pass.layers[layer].dictionary.skip else { return Ok(None) };
        let adjoint = &self.pass.frozen.adjoint;
        let written = adjoint.pull(Passage::MlpOutput { layer, hook: self.pass.hooks.1 }, gradient, self.at)?;
        let read = written.f_matmul(&skip.f_to_kind(self.pass.place.0)?)?;
        Ok(Some(adjoint.pull(Passage::MlpInput { layer, hook: self.pass.hooks.0 }, &read, self.at)?))
    }
}

impl Attribution<'_> {
    /// Splits the kept edges of a graph of this prompt that come from another position than their target's.
    ///
    /// # Errors
    /// Rows that cannot be read, and what libtorch returns.
    pub fn head_loadings(&self, graph: &Graph, pruned: &Pruned, progress: &dyn Progress) -> Result<HeadLoadings> {
        let nodes = &graph.nodes;
        let mut by_target: BTreeMap<usize, Vec<(usize, f32)>> = BTreeMap::new();
        pruned.each_edge(graph, false, |edge| {
            if position(nodes.kind(edge.source)) != position(nodes.kind(edge.target)).or(Some(nodes.tokens.len() - 1)) {
                by_target.entry(edge.target).or_default().push((edge.source, edge.weight));
            }
            Ok(())
        })?;
        tch::no_grad(|| {
            let sweep = self.sweep(false)?;
            let (mut edges, mut weights, mut loadings) = (Vec::new(), Vec::new(), Vec::new());
            progress.begin("head loadings", by_target.len() as u64, "nodes");
            for (done, (target, sources)) in by_target.into_iter().enumerate() {
                let rows = sweep.head_rows(&self.target(nodes.kind(target))?, self.heads)?.f_get(0)?;
                let features = nodes.selected.len();
                let column = |source: usize| {
                    if source < features { nodes.selected[source] as usize } else { source - features + nodes.active.len() }
                };
                let columns: Vec<i64> = sources.iter().map(|(source, _)| column(*source) as i64).collect();
                let columns = Tensor::from_slice(&columns).f_to_device(rows.device())?;
                // [layer, head, edges] to [edges, layer, head].
                let own = rows.f_index_select(2, &columns)?.f_permute([2, 0, 1])?;
                loadings.push(own.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?);
                edges.extend(sources.iter().map(|(source, _)| (target, *source)));
                weights.extend(sources.iter().map(|(_, weight)| *weight));
                progress.at(done as u64 + 1, "");
            }
            progress.end();
            let shape = [0, self.depth() as i64, self.heads as i64];
            let loadings =
                if loadings.is_empty() { Tensor::f_zeros(shape, (Kind::Float, tch::Device::Cpu))? } else { Tensor::f_cat(&loadings, 0)? };
            Ok(HeadLoadings { edges, weights, loadings })
        })
    }
}

/// A node's position, but for logits, which are at the last one.
fn position(kind: NodeKind) -> Option<usize> {
    match kind {
        NodeKind::Feature { position, .. }
        | NodeKind::Error { position, .. }
        | NodeKind::Token { position }
        | NodeKind::DecoderBias { position, .. }
        | NodeKind::AttentionBias { position, .. }
        | NodeKind::Position { position }
        | NodeKind::SpecialOutput { position, .. } => Some(position),
        NodeKind::OwnBias | NodeKind::Unselected | NodeKind::Logit { .. } => None,
    }
}

impl HeadLoadings {
    /// Heads by how much of all edges they carry, up or down: layer, head, and the sum of absolute loadings.
    ///
    /// # Errors
    /// What libtorch returns.
    pub fn heads(&self) -> Result<Vec<(usize, usize, f64)>> {
        let sums = self.loadings.f_abs()?.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?;
        let size = sums.size();
        let [layers, heads] = [0, 1].map(|axis| size[axis] as usize);
        let places = (0..layers).flat_map(|layer| (0..heads).map(move |head| (layer, head)));
        let mut all: Vec<(usize, usize, f64)> =
            places.map(|(layer, head)| Ok((layer, head, sums.f_double_value(&[layer as i64, head as i64])?))).collect::<Result<_>>()?;
        all.sort_by(|a, b| b.2.total_cmp(&a.2));
        Ok(all)
    }

    /// For each target the look that carries most into it: the head whose edges to it weigh most, and the position that they come from. Ordered by
    /// target.
    ///
    /// # Errors
    /// What libtorch returns.
    pub fn looks(&self, graph: &Graph) -> Result<Vec<(usize, Look)>> {
        let mut found: Vec<(usize, Look)> = Vec::new();
        let mut first = 0;
        for own in self.edges.chunk_by(|a, b| a.0 == b.0) {
            let target = own[0].0;
            let sums = self.loadings.f_narrow(0, first as i64, own.len() as i64)?.f_abs()?;
            let by_head = sums.f_sum_dim_intlist([0].as_slice(), false, Kind::Double)?;
            let place = by_head.f_flatten(0, 1)?.f_argmax(0, false)?.f_int64_value(&[])?;
            let heads = by_head.size()[1];
            let (layer, head) = (place / heads, place % heads);
            // The source position of which most is carried by it.
            let mut by_position: BTreeMap<usize, f64> = BTreeMap::new();
            for (at, (_, source)) in own.iter().enumerate() {
                let carried = sums.f_double_value(&[at as i64, layer, head])?;
                *by_position.entry(position(graph.nodes.kind(*source)).unwrap_or_default()).or_default() += carried;
            }
            let key = by_position.into_iter().fold((0, -1.0), |most, (key, sum)| if sum > most.1 { (key, sum) } else { most }).0;
            let query = position(graph.nodes.kind(target)).unwrap_or(graph.nodes.tokens.len() - 1);
            found.push((target, Look { layer: layer as usize, head: head as usize, query, key }));
            first += own.len();
        }
        Ok(found)
    }
}
