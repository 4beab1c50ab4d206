//! `circuitlab graph prune`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use circuitlab::graph::{GRAPH_LIST, Graph, GraphFile, JsonOptions, Pruned, Scores, check_slug, enter, write_into, write_json};
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
    if is_same_file(&args.graph, &args.out) {
        bail!("--out: `{}` is the graph itself, with its matrix; expected another file, such as `graph.json`", args.out.display());
    }
    if args.closing && !graph.nodes.closing {
        bail!("--closing: the graph `{}` was made without closing nodes; `attribute --closing` makes one with them", args.graph.display());
    }
    let pruned = Pruned::of(&*graph, options)?;
    let json = JsonOptions { slug: args.slug.clone(), closing: args.closing, ..JsonOptions::default() };
    let file = write_view(&args.out, &graph, &pruned, json)?;
    let nodes = graph.nodes.count() - graph.nodes.closing().len();
    let nodes_kept = pruned.kept.iter().filter(|kept| **kept).count();
    let written = Written { file, nodes, nodes_kept, edges_kept: pruned.edges, scores: pruned.scores };
    context.print(&written, || {
        let [kept, nodes] = [nodes_kept, nodes].map(|count| human::whole(count as u64));
        format!(
            "{kept} of {nodes} nodes and {} edges{} are in `{}`; replacement {:.4}, completeness {:.4}",
            human::whole(written.edges_kept),
            if args.closing { ", and closing nodes with theirs," } else { "" },
            written.file.display(),
            written.scores.replacement,
            written.scores.completeness
        )
    })
}

/// Whether two paths lead to the same file, there or not.
pub(in crate::commands) fn is_same_file(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        path.canonicalize().ok().or_else(|| Some(folder.canonicalize().ok()?.join(path.file_name()?))).unwrap_or_else(|| path.to_path_buf())
    };
    whole(one) == whole(other)
}

/// Writes a graph for viewers: into a folder and its list, or as a file.
pub(in crate::commands) fn write_view(out: &Path, graph: &Graph, pruned: &Pruned, mut json: JsonOptions) -> anyhow::Result<PathBuf> {
    if out.is_dir() {
        return Ok(write_into(out, graph, &graph.meta, pruned, &json)?);
    }
    let stem = out.file_stem().with_context(|| format!("--out: `{}` is no file's name", out.display()))?.to_string_lossy();
    let slug = json.slug.get_or_insert_with(|| stem.clone().into_owned()).clone();
    check_slug(&slug)?;
    let entry = write_json(out, graph, &graph.meta, pruned, &json)?;
    // A list that is there would else have old settings of this file.
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), PathBuf::from);
    if stem == slug && folder.join(GRAPH_LIST).exists() {
        enter(&folder, entry)?;
    }
    Ok(out.to_path_buf())
}
