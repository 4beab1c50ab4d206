//! `circuitlab graph scores`.

use std::path::{Path, PathBuf};

use circuitlab::graph::{GraphFile, Influence};
use serde::Serialize;

use super::{Context, score};
use crate::args::GraphScoresArgs;
use crate::output::{Table, human};

/// What is known of a graph. A file for viewers has the scores of the whole graph, where its writer put them there.
#[derive(Serialize)]
struct Known {
    file: PathBuf,
    nodes: usize,
    features: usize,
    logits: usize,
    replacement: Option<f64>,
    completeness: Option<f64>,
}

pub(super) fn run(args: &GraphScoresArgs, context: &Context) -> anyhow::Result<()> {
    let all = args.graphs.iter().map(|path| known(path)).collect::<anyhow::Result<Vec<_>>>()?;
    context.print(&all, || {
        let mut table = Table::new(["graph", "nodes", "features", "logits", "replacement", "completeness"]);
        for known in &all {
            let counts = [known.nodes, known.features, known.logits].map(|count| human::whole(count as u64));
            let cells = std::iter::once(known.file.display().to_string()).chain(counts);
            table.row(cells.chain([score(known.replacement), score(known.completeness)]));
        }
        table.to_string()
    })
}

fn known(path: &Path) -> anyhow::Result<Known> {
    let file = path.to_path_buf();
    Ok(match GraphFile::open(path)? {
        GraphFile::Matrix(graph) => {
            let scores = Influence::of(&*graph)?.scores;
            let nodes = &graph.nodes;
            Known {
                file,
                nodes: nodes.count(),
                features: nodes.selected.len(),
                logits: nodes.logits.len(),
                replacement: Some(scores.replacement),
                completeness: Some(scores.completeness),
            }
        }
        GraphFile::View(view) => {
            let count = |is: fn(&circuitlab::graph::ViewNode) -> bool| view.nodes.iter().filter(|node| is(node)).count();
            Known {
                file,
                nodes: view.nodes.len(),
                features: count(circuitlab::graph::ViewNode::is_feature),
                logits: count(circuitlab::graph::ViewNode::is_logit),
                replacement: view.score("replacement_score"),
                completeness: view.score("completeness_score"),
            }
        }
    })
}
