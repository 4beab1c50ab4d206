//! All that was computed, as tensors.

use std::path::Path;

use circuitlab::graph::{Graph, GraphWriter, Pruned, Rows as _};
use circuitlab_core::tch::Tensor;

/// Writes the graph again, with the pass's tensors and what pruning kept. Names and shapes are those of the graphs that the project is tested
/// against (`tests/fixtures/graphs/README.md`).
pub(super) fn all(path: &Path, graph: &Graph, pruned: &Pruned, mut named: Vec<(String, Tensor)>) -> anyhow::Result<()> {
    let narrow = |values: &[f64]| Tensor::from_slice(&values.iter().map(|value| *value as f32).collect::<Vec<_>>());
    let mask = |kept: &[bool]| Tensor::from_slice(&kept.iter().map(|kept| u8::from(*kept)).collect::<Vec<_>>());
    let (mut ends, mut scores) = (Vec::new(), Vec::new());
    pruned.each_edge(graph, false, |edge| {
        ends.extend([edge.target as i32, edge.source as i32]);
        scores.push(edge.score);
        Ok(())
    })?;
    let mut row = Vec::new();
    let mut logit_rows = Vec::with_capacity(graph.nodes.logits.len() * graph.nodes.count());
    for node in graph.nodes.logits() {
        graph.read(node, &mut row)?;
        logit_rows.extend_from_slice(&row);
    }
    for (name, tensor) in [
        ("node_influence", narrow(&pruned.influence)),
        ("cumulative_scores", narrow(&pruned.cumulative)),
        ("initial_node_mask", mask(&pruned.initial)),
        ("node_mask", mask(&pruned.kept)),
        ("edge_mask_indices", Tensor::from_slice(&ends).f_view([-1, 2])?),
        ("edge_score_threshold_kept", narrow(&scores)),
        ("adjacency_logit_rows", Tensor::from_slice(&logit_rows).f_view([graph.nodes.logits.len() as i64, -1])?),
    ] {
        named.push((name.to_owned(), tensor));
    }
    let mut writer = GraphWriter::create(path, &graph.nodes, &graph.meta, &named)?;
    for node in graph.nodes.targets() {
        graph.read(node, &mut row)?;
        writer.row(node, &row)?;
    }
    Ok(writer.finish()?)
}
