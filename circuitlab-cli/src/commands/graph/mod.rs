//! `circuitlab graph`.

mod diff;
mod prune;
mod scores;
mod show;

pub(super) use prune::{is_same_file, write_view};

use std::path::Path;

use circuitlab::graph::{GraphFile, JsonOptions, PruneOptions, Pruned, View};

use super::Context;
use crate::args::{GraphCommand, ThresholdArgs};

pub(super) fn run(command: &GraphCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        GraphCommand::Prune(args) => prune::run(args, context),
        GraphCommand::Scores(args) => scores::run(args, context),
        GraphCommand::Show(args) => show::run(args, context),
        GraphCommand::Diff(args) => diff::run(args, context),
    }
}

/// The thresholds, checked before any file is read.
pub(super) fn options(args: &ThresholdArgs) -> anyhow::Result<PruneOptions> {
    let options = PruneOptions { node_threshold: args.node_threshold, edge_threshold: args.edge_threshold };
    options.check()?;
    Ok(options)
}

/// A file for viewers as it is, or what is kept of one with its matrix.
fn view(path: &Path, options: PruneOptions) -> anyhow::Result<View> {
    Ok(match GraphFile::open(path)? {
        GraphFile::View(view) => view,
        GraphFile::Matrix(graph) => View::of(&*graph, &graph.meta, &Pruned::of(&*graph, options)?, &JsonOptions::default())?,
    })
}

fn score(score: Option<f64>) -> String {
    score.map_or_else(|| "-".to_owned(), |score| format!("{score:.4}"))
}
