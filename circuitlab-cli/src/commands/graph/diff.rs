//! `circuitlab graph diff`.

use std::collections::HashMap;

use circuitlab::graph::{GraphDiff, View, diff};

use super::{Context, options, score, view};
use crate::args::GraphDiffArgs;
use crate::output::{Table, human};

pub(super) fn run(args: &GraphDiffArgs, context: &Context) -> anyhow::Result<()> {
    let options = options(&args.thresholds)?;
    let views = [view(&args.first, options)?, view(&args.second, options)?];
    let found = diff(&views[0], &views[1], args.top);
    context.print(&found, || text(&views, &found, args.top))
}

fn text(views: &[View; 2], found: &GraphDiff, top: usize) -> String {
    let mut parts = Vec::new();
    if !found.same_prompt {
        parts.push("the prompts differ: nodes are compared by layer, feature and position all the same".to_owned());
    }
    let mut counts = Table::new(["", "both", "first alone", "second alone"]);
    let row = |name: &str, numbers: [usize; 3]| {
        std::iter::once(name.to_owned()).chain(numbers.map(|number| human::whole(number as u64))).collect::<Vec<_>>()
    };
    counts.row(row("nodes", [found.shared_nodes, found.only_first.len(), found.only_second.len()]));
    counts.row(row("edges", [found.shared_links, found.links_only_first, found.links_only_second]));
    parts.push(counts.to_string());
    let mut scores = Table::new(["score", "first", "second"]);
    for (name, both) in [("replacement", found.replacement_score), ("completeness", found.completeness_score)] {
        scores.row(std::iter::once(name.to_owned()).chain(both.map(score)));
    }
    parts.push(scores.to_string());
    let names = names(views);
    let name = |id: &str| names.get(id).cloned().unwrap_or_else(|| id.to_owned());
    for (which, own) in [("first", &found.only_first), ("second", &found.only_second)] {
        if !own.is_empty() {
            let shown = own.iter().take(top).map(|id| format!("  {}", name(id)));
            let rest = own.len().saturating_sub(top);
            let rest = (rest > 0).then(|| format!("  and {} more", human::whole(rest as u64)));
            let head = std::iter::once(format!("only in the {which}, by influence:"));
            parts.push(head.chain(shown).chain(rest).collect::<Vec<_>>().join("\n"));
        }
    }
    if !found.links.is_empty() {
        let mut links = Table::new(["from", "to", "first", "second", "difference"]);
        let weight = |weight: Option<f32>| weight.map_or_else(|| "-".to_owned(), |weight| format!("{weight:.4}"));
        for link in &found.links {
            let ends = [name(&link.source), name(&link.target)];
            links.row(ends.into_iter().chain([weight(link.first), weight(link.second), format!("{:+.4}", link.difference())]));
        }
        parts.push(format!("edges that differ most\n{links}"));
    }
    parts.join("\n\n")
}

fn names(views: &[View; 2]) -> HashMap<&str, String> {
    let of = |view: &View| (0..view.nodes.len()).map(|node| view.name(node)).collect::<Vec<_>>();
    views.iter().flat_map(|view| view.nodes.iter().map(|node| node.node_id.as_str()).zip(of(view))).collect()
}
