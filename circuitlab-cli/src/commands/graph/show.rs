//! `circuitlab graph show`.

use circuitlab::graph::{GraphPath, View, flow, paths};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Context, options, score, view};
use crate::args::GraphShowArgs;
use crate::output::human;

#[derive(Serialize)]
struct Shown {
    metadata: Map<String, Value>,
    nodes: usize,
    links: usize,
    logits: Vec<Logit>,
}

#[derive(Serialize)]
struct Logit {
    node: String,
    label: String,
    probability: Option<f64>,
    features: Vec<Through>,
    paths: Vec<Way>,
}

/// A feature, and how much of the logit goes through it.
#[derive(Serialize)]
struct Through {
    share: f64,
    node: String,
    name: String,
}

/// A path, from its first node to the logit.
#[derive(Serialize)]
struct Way {
    share: f64,
    positive: bool,
    nodes: Vec<String>,
    names: Vec<String>,
}

pub(super) fn run(args: &GraphShowArgs, context: &Context) -> anyhow::Result<()> {
    let view = view(&args.graph, options(&args.thresholds)?)?;
    let mut logits = Vec::new();
    for (place, node) in view.nodes.iter().enumerate().filter(|(_, node)| node.is_logit()) {
        let paths = paths(&view, place, args.top)?.into_iter().map(|path| way(&view, &path)).collect();
        let features = features(&view, &flow(&view, place)?, args.top);
        let (label, probability) = (node.clerp.clone(), node.token_prob);
        logits.push(Logit { node: node.node_id.clone(), label, probability, features, paths });
    }
    let shown = Shown { metadata: view.metadata.clone(), nodes: view.nodes.len(), links: view.links.len(), logits };
    context.print(&shown, || text(&view, &shown))
}

/// The features that most goes through.
fn features(view: &View, flow: &[f64], top: usize) -> Vec<Through> {
    let mut places: Vec<usize> = (0..flow.len()).filter(|node| view.nodes[*node].is_feature() && flow[*node] > 0.0).collect();
    places.sort_by(|left, right| flow[*right].total_cmp(&flow[*left]));
    let through = |place: usize| Through { share: flow[place], node: view.nodes[place].node_id.clone(), name: view.name(place) };
    places.into_iter().take(top).map(through).collect()
}

fn way(view: &View, path: &GraphPath) -> Way {
    let nodes = path.nodes.iter().map(|node| view.nodes[*node].node_id.clone()).collect();
    let names = path.nodes.iter().map(|node| view.name(*node)).collect();
    Way { share: path.share, positive: path.positive, nodes, names }
}

fn text(view: &View, shown: &Shown) -> String {
    let prompt = view.metadata.get("prompt").and_then(Value::as_str).unwrap_or_default();
    let [nodes, links] = [shown.nodes, shown.links].map(|count| human::whole(count as u64));
    let [replacement, completeness] = ["replacement_score", "completeness_score"].map(|name| score(view.score(name)));
    let mut lines = vec![
        format!("{prompt:?}: {nodes} nodes, {links} edges; replacement {replacement}, completeness {completeness}"),
        "shares are those of the edges shown; - where a path makes its logit less".to_owned(),
    ];
    for logit in &shown.logits {
        lines.push(format!("\n{}", logit.label.replace('\n', "\\n")));
        if logit.paths.is_empty() {
            lines.push("  nothing that is shown adds to it".to_owned());
        }
        if !logit.features.is_empty() {
            let features = logit.features.iter().map(|through| format!("{} {:.1} %", through.name, 100.0 * through.share));
            lines.push(format!("  features: {}", features.collect::<Vec<_>>().join(", ")));
        }
        for way in &logit.paths {
            // The logit is the heading.
            let nodes = &way.names[..way.names.len() - 1];
            let sign = if way.positive { '+' } else { '-' };
            lines.push(format!("  {:5.1} % {sign} {}", 100.0 * way.share, nodes.join(" -> ")));
        }
    }
    lines.join("\n")
}
