//! The paths through a graph that carry most of a logit.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use serde::Serialize;

use super::View;
use crate::{Error, Result};

/// A way through a graph, from a node that nothing adds to, such as a token or an error, to a logit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphPath {
    /// Its nodes, as places in [`View::nodes`], the logit last.
    pub nodes: Vec<usize>,
    /// The share of the logit that goes this way: the product of the shares of its edges, each that of the absolute weights of all edges that
    /// the view has to the same target. The shares of all paths to a logit sum to 1.
    pub share: f64,
    /// Whether an even number of its edges are negative, so that more of the first node is more of the logit.
    pub positive: bool,
}

/// The `top` paths to a logit that have the greatest shares, in their order. They are found without going through others, however many there
/// are: from the logit back, always on by the one that can become the greatest.
///
/// # Errors
/// A view with a cycle, and a node that is none.
pub fn paths(view: &View, logit: usize, top: usize) -> Result<Vec<GraphPath>> {
    if logit >= view.nodes.len() {
        return Err(no_node(view, logit));
    }
    let edges = Shares::of(view);
    let best = edges.best(&view.order().map_err(Error::Invalid)?);
    let mut steps = vec![Step { node: logit as u32, next: None, positive: true }];
    let mut open = BinaryHeap::from([Open { bound: best[logit], share: 1.0, step: 0 }]);
    let mut found = Vec::new();
    while let Some(Open { share, step, .. }) = open.pop().filter(|_| found.len() < top) {
        let node = steps[step].node as usize;
        if edges.into[node].is_empty() {
            found.push(GraphPath { nodes: follow(&steps, step), share, positive: steps[step].positive });
            continue;
        }
        for edge in &edges.into[node] {
            let share = share * edge.share;
            open.push(Open { bound: share * best[edge.source as usize], share, step: steps.len() });
            steps.push(Step { node: edge.source, next: Some(step), positive: steps[step].positive == edge.positive });
        }
    }
    // A logit that nothing adds to has no path.
    found.retain(|path: &GraphPath| path.nodes.len() > 1);
    Ok(found)
}

/// For each node the share of a logit that goes through it: the sum of the shares of all paths from it to the logit, 1 for the logit itself.
///
/// # Errors
/// As [`paths`].
pub fn flow(view: &View, logit: usize) -> Result<Vec<f64>> {
    if logit >= view.nodes.len() {
        return Err(no_node(view, logit));
    }
    let edges = Shares::of(view);
    let mut flow = vec![0.0; view.nodes.len()];
    flow[logit] = 1.0;
    // All that a node adds to comes after it.
    for node in view.order().map_err(Error::Invalid)?.into_iter().rev().map(|node| node as usize) {
        for edge in &edges.into[node] {
            flow[edge.source as usize] += edge.share * flow[node];
        }
    }
    Ok(flow)
}

fn no_node(view: &View, node: usize) -> Error {
    Error::Invalid(format!("node {node} of a graph of {}", view.nodes.len()))
}

struct ShareEdge {
    source: u32,
    share: f64,
    positive: bool,
}

/// The edges into each node, as shares.
struct Shares {
    into: Vec<Vec<ShareEdge>>,
}

impl Shares {
    fn of(view: &View) -> Self {
        let mut into: Vec<Vec<ShareEdge>> = view.nodes.iter().map(|_| Vec::new()).collect();
        for link in view.links.iter().filter(|link| link.weight != 0.0) {
            let (share, positive) = (f64::from(link.weight.abs()), link.weight > 0.0);
            into[link.target as usize].push(ShareEdge { source: link.source, share, positive });
        }
        for edges in &mut into {
            let total: f64 = edges.iter().map(|edge| edge.share).sum();
            for edge in edges {
                edge.share /= total;
            }
        }
        Self { into }
    }

    /// The greatest share of a path from each node back to one that nothing adds to.
    fn best(&self, order: &[u32]) -> Vec<f64> {
        let mut best = vec![1.0; self.into.len()];
        for node in order.iter().map(|node| *node as usize).filter(|node| !self.into[*node].is_empty()) {
            best[node] = self.into[node].iter().map(|edge| edge.share * best[edge.source as usize]).fold(0.0, f64::max);
        }
        best
    }
}

/// A node on the way back, and the step that it came from.
struct Step {
    node: u32,
    next: Option<usize>,
    positive: bool,
}

fn follow(steps: &[Step], from: usize) -> Vec<usize> {
    std::iter::successors(Some(from), |step| steps[*step].next).map(|step| steps[step].node as usize).collect()
}

/// The end of a path that has not come to its beginning.
struct Open {
    /// The greatest share that it can have.
    bound: f64,
    share: f64,
    step: usize,
}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bound.total_cmp(&other.bound).then(other.step.cmp(&self.step))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Open {}
