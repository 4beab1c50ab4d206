//! What attention did, where it was asked for.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use circuitlab::Progress;
use circuitlab::graph::{Attribution, Graph, HeadLoadings, JsonOptions, Look, LookParts, NodeKind, Pruned, ViewNode, node_id};
use circuitlab_core::tch::Tensor;
use circuitlab_core::tensors;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::AttributeArgs;
use crate::output::Table;

/// Heads that are named.
const NAMED_HEADS: usize = 10;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Attention {
    /// The file of head loadings.
    #[serde(skip_serializing_if = "Option::is_none")]
    heads_file: Option<PathBuf>,
    /// Heads that carry most of the kept edges between positions: layer, head, sum of absolute loadings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    heads: Vec<(usize, usize, f64)>,
    /// The looks that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    qk: Vec<LookParts>,
}

/// Splits edges and scores as the flags say; traces of nodes go into the graph for viewers, `json`.
pub(super) fn traced(
    args: &AttributeArgs,
    attribution: &Attribution<'_>,
    graph: &Graph,
    pruned: &Pruned,
    file: &Path,
    json: &mut JsonOptions,
    progress: &dyn Progress,
) -> anyhow::Result<Attention> {
    let mut found = Attention::default();
    if args.heads || args.qk_nodes > 0 {
        let loadings = attribution.head_loadings(graph, pruned, progress)?;
        if args.heads {
            let path = file.with_extension("heads.safetensors");
            write(&path, &loadings)?;
            found.heads_file = Some(path);
            found.heads = loadings.heads()?;
            found.heads.truncate(NAMED_HEADS);
        }
        if args.qk_nodes > 0 {
            nodes(args, attribution, graph, pruned, &loadings, json)?;
        }
    }
    found.qk = attribution.looks(&args.qk, args.qk_top)?;
    Ok(found)
}

fn write(path: &Path, loadings: &HeadLoadings) -> anyhow::Result<()> {
    let edges: Vec<i32> = loadings.edges.iter().flat_map(|(target, source)| [*target as i32, *source as i32]).collect();
    let named = [
        ("edges".to_owned(), Tensor::from_slice(&edges).f_view([-1, 2])?),
        ("weights".to_owned(), Tensor::from_slice(&loadings.weights)),
        ("loadings".to_owned(), loadings.loadings.shallow_clone()),
    ];
    Ok(tensors::write(path, &named)?)
}

/// Traces of the nodes of most influence, by node, and what they name that was not kept.
fn nodes(
    args: &AttributeArgs,
    attribution: &Attribution<'_>,
    graph: &Graph,
    pruned: &Pruned,
    loadings: &HeadLoadings,
    json: &mut JsonOptions,
) -> anyhow::Result<()> {
    let mut looks = loadings.looks(graph)?;
    // Logits have no influence of their own, and come first.
    let rank = |node: usize| if matches!(graph.nodes.kind(node), NodeKind::Logit { .. }) { f64::INFINITY } else { pruned.influence[node] };
    looks.sort_by(|a, b| rank(b.0).total_cmp(&rank(a.0)).then(Reverse(b.0).cmp(&Reverse(a.0))));
    let mut named: BTreeSet<String> = BTreeSet::new();
    looks.truncate(args.qk_nodes);
    let (nodes, looks): (Vec<usize>, Vec<Look>) = looks.into_iter().unzip();
    for (node, parts) in nodes.into_iter().zip(attribution.looks(&looks, args.qk_top)?) {
        let look = parts.look;
        let ids = parts.query_marginals.iter().chain(&parts.key_marginals).map(|(id, _)| id);
        named.extend(ids.chain(parts.pairs.iter().flat_map(|(query, key, _)| [query, key])).cloned());
        let results = json!({
            "pair_wise_contributors": parts.pairs,
            "top_q_marginal_contributors": parts.query_marginals,
            "top_k_marginal_contributors": parts.key_marginals,
            "layer": look.layer, "head": look.head, "query_position": look.query, "key_position": look.key, "score": parts.score,
        });
        json.qk_tracing_results.insert(node, results);
    }
    let all = graph.nodes.features().chain(graph.nodes.errors()).chain(graph.nodes.tokens());
    let mut only = serde_json::Map::new();
    for node in all.filter(|node| !pruned.kept[*node]) {
        let id = node_id(&graph.nodes, node);
        if named.contains(&id) {
            only.insert(id, serde_json::to_value(ViewNode::new(&graph.nodes, pruned, node))?);
        }
    }
    json.qk_only_nodes = (!only.is_empty()).then_some(Value::Object(only));
    Ok(())
}

impl Attention {
    /// For people.
    pub(super) fn text(&self) -> Option<String> {
        let mut parts = Vec::new();
        if let Some(file) = &self.heads_file {
            let mut table = Table::new(["layer/head", "sum of absolute loadings"]);
            for (layer, head, sum) in &self.heads {
                table.row([format!("{layer}/{head}"), format!("{sum:.3}")]);
            }
            parts.push(format!("edges between positions are split over heads in `{}`; those that carry most:\n{table}", file.display()));
        }
        for LookParts { look, score, sum_of_pairs, pairs, query_marginals, key_marginals } in &self.qk {
            let mut table = Table::new(["query side", "key side", "part"]);
            for (query, key, part) in pairs {
                table.row([query.clone(), key.clone(), format!("{part:+.4}")]);
            }
            let mut sides = Table::new(["query side, with all keys", "part", "key side, with all queries", "part"]);
            for place in 0..query_marginals.len().max(key_marginals.len()) {
                let cells = |side: &[(String, f64)]| {
                    side.get(place).map_or_else(Default::default, |(id, part)| [id.clone(), format!("{part:+.4}")])
                };
                sides.row(cells(query_marginals).into_iter().chain(cells(key_marginals)));
            }
            parts.push(format!(
                "head {}/{} from position {} to {}: score {score:.4}, the sum of all pairs {sum_of_pairs:.4}\n{table}\n{sides}",
                look.layer, look.head, look.query, look.key
            ));
        }
        (!parts.is_empty()).then(|| parts.join("\n\n"))
    }
}
