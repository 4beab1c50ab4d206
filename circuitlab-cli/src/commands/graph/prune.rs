//! `circuitlab graph prune`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use circuitlab::graph::{GRAPH_LIST, GraphFile, JsonOptions, Pruned, Scores, check_slug, enter, write_into, write_json};
use serde::Serialize;

use super::{Context, options};
use crate::args::GraphPruneArgs;
use crate::output::human;

/// What was written.
#[derive(Serialize)]
struct Written {
    file: PathBuf,
    /// Nodes of the graph that count, which closing ones do not.
    nodes: usize,
    nodes_kept: usize,
    edges_kept: u64,
    #[serde(flatten)]
    scores: Scores,
}

pub(super) fn run(args: &GraphPruneArgs, context: &Context) -> anyhow::Result<()> {
    let options = options(&args.thresholds)?;
    let GraphFile::Matrix(graph) = GraphFile::open(&args.graph)? else {
        let shown = args.graph.display();
        bail!(
            "`{shown}` is a graph for viewers, which has lost what was pruned; pruning needs the matrix: the .safetensors file beside it"
        );
    };
    let pruned = Pruned::of(&*graph, options)?;
    let mut json = JsonOptions { slug: args.slug.clone(), closing: args.closing, ..JsonOptions::default() };
    let file = if args.out.is_dir() {
        write_into(&args.out, &*graph, &graph.meta, &pruned, &json)?
    } else {
        let stem = args.out.file_stem().with_context(|| format!("--out: `{}` is no file's name", args.out.display()))?.to_string_lossy();
        let slug = json.slug.get_or_insert_with(|| stem.clone().into_owned()).clone();
        check_slug(&slug)?;
        let entry = write_json(&args.out, &*graph, &graph.meta, &pruned, &json)?;
        // A list that is there would else have old settings of this file.
        let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from);
        if stem == slug && folder.join(GRAPH_LIST).exists() {
            enter(&folder, entry)?;
        }
        args.out.clone()
    };
    let nodes = graph.nodes.count() - graph.nodes.closing().len();
    let nodes_kept = pruned.kept.iter().filter(|kept| **kept).count();
    let written = Written { file, nodes, nodes_kept, edges_kept: pruned.edges, scores: pruned.scores };
    context.print(&written, || {
        let [kept, nodes] = [nodes_kept, nodes].map(|count| human::whole(count as u64));
        format!(
            "{kept} of {nodes} nodes and {} edges are in `{}`; replacement {:.4}, completeness {:.4}",
            human::whole(written.edges_kept),
            written.file.display(),
            written.scores.replacement,
            written.scores.completeness
        )
    })
}
