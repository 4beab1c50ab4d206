//! Which nodes and edges of a graph are worth looking at.

use serde::{Deserialize, Serialize};

use super::influence::{Flow, FlowRow};
use super::threshold::{Histogram, of_sorted};
use super::{Influence, Rows, Scores};
use crate::{Error, Result};

/// How much of a graph to keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PruneOptions {
    /// The share of all influence that the nodes with most of it have together, 0 to 1.
    pub node_threshold: f64,
    /// The share of all that flows between these nodes that the edges with most of it carry together, 0 to 1.
    pub edge_threshold: f64,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self { node_threshold: 0.8, edge_threshold: 0.98 }
    }
}

impl PruneOptions {
    /// Checks that both are shares.
    ///
    /// # Errors
    /// A threshold below 0, above 1 or that is no number.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("node", self.node_threshold), ("edge", self.edge_threshold)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::Invalid(format!("the {name} threshold is {value}, expected a share from 0 to 1")));
            }
        }
        Ok(())
    }
}

/// An edge that was kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Edge {
    /// The node that is added to.
    pub target: usize,
    /// The node that adds.
    pub source: usize,
    /// What it adds: the number in the matrix.
    pub weight: f32,
    /// The influence that flows through the edge, among the nodes that were kept at first.
    pub score: f64,
}

/// What was kept of a graph. The graph itself is left as it is, so that it can be pruned again with other thresholds.
///
/// Nodes are kept by their [`Influence`], with tokens and logits always; then rows are normalised again over what is kept, and edges kept by
/// what flows through them. Features and errors without a kept edge out, and features without one in, are dropped until there are no more.
/// Closing nodes count for none of this, so that the same is kept with them and without.
#[derive(Debug, Clone, PartialEq)]
pub struct Pruned {
    /// The thresholds.
    pub options: PruneOptions,
    /// Influences in the whole graph.
    pub influence: Vec<f64>,
    /// For each node the share of influence of all that matter as much or more; see [`Influence::cumulative`].
    pub cumulative: Vec<f64>,
    /// Scores of the whole graph.
    pub scores: Scores,
    /// Nodes that were kept by their influence.
    pub initial: Vec<bool>,
    /// Nodes that were kept in the end.
    pub kept: Vec<bool>,
    /// How many edges were kept.
    pub edges: u64,
    /// Of each target the sum of its row, and what flows through it, over the nodes that were kept at first.
    rows: Vec<(f64, f64)>,
    /// The lowest score of an edge that is kept.
    least: f64,
}

impl Pruned {
    /// Prunes a graph in five to eight passes over its rows, most of them over rows of kept nodes only. In memory there are a few numbers for
    /// each node, one row, and at most some ten megabytes to find the edge threshold with, however many edges there are.
    ///
    /// # Errors
    /// Thresholds out of range, and rows that cannot be read.
    pub fn of(rows: &impl Rows, options: PruneOptions) -> Result<Self> {
        options.check()?;
        let influence = Influence::of(rows)?;
        let initial = by_influence(rows, &influence, options.node_threshold);
        let mut pruned = Self {
            options,
            cumulative: influence.cumulative(),
            influence: influence.values,
            scores: influence.scores,
            kept: initial.clone(),
            rows: vec![(1.0, 0.0); initial.len()],
            initial,
            edges: 0,
            least: 0.0,
        };
        pruned.find_least(rows)?;
        pruned.clean(rows)?;
        let mut edges = 0;
        pruned.each_edge(rows, false, |_| {
            edges += 1;
            Ok(())
        })?;
        pruned.edges = edges;
        Ok(pruned)
    }

    /// Goes through the kept edges, by target and then by source; and through edges of closing nodes to kept nodes where `closing` says so,
    /// if as much would flow through them as through kept ones.
    ///
    /// # Errors
    /// Rows that cannot be read, and what `show` returns.
    pub fn each_edge(&self, rows: &impl Rows, closing: bool, mut show: impl FnMut(Edge) -> Result<()>) -> Result<()> {
        let nodes = rows.nodes();
        let closing = if closing { nodes.closing() } else { 0..0 };
        let sources: Vec<usize> = (0..nodes.tokens().end).filter(|node| self.kept[*node]).chain(closing).collect();
        let mut numbers = Vec::new();
        for target in nodes.targets().filter(|target| self.kept[*target]) {
            rows.read(target, &mut numbers)?;
            for source in &sources {
                let (weight, score) = (numbers[*source], self.score(target, numbers[*source]));
                if self.counts(score) {
                    show(Edge { target, source: *source, weight, score })?;
                }
            }
        }
        Ok(())
    }

    fn score(&self, target: usize, weight: f32) -> f64 {
        let (total, own) = self.rows[target];
        f64::from(weight.abs()) / total * own
    }

    fn counts(&self, score: f64) -> bool {
        score > 0.0 && score >= self.least
    }

    /// Normalises over the kept nodes, and finds the score that edges need.
    fn find_least(&mut self, rows: &impl Rows) -> Result<()> {
        let mut flow = Flow::through(rows.nodes(), |node| self.kept[node]);
        let mut histogram = Histogram::new();
        let sources = flow.sources.clone();
        flow.descend(rows, |FlowRow { target, numbers, total, own }| {
            self.rows[*target] = (*total, *own);
            for source in &sources {
                histogram.add(self.score(*target, numbers[*source as usize]));
            }
            Ok(())
        })?;
        // Every edge counts so long as there is no least score.
        self.least = histogram.threshold(self.options.edge_threshold, |give| {
            self.each_edge(rows, false, |edge| {
                give(edge.score);
                Ok(())
            })
        })?;
        Ok(())
    }

    /// Drops what hangs in the air: from the logits down what has no way out, from the tokens up what has no way in, until there is no more.
    /// What is left is the largest part of the graph without such nodes, whatever the order.
    fn clean(&mut self, rows: &impl Rows) -> Result<()> {
        self.drop_without_way_out(rows)?;
        while self.drop_without_way_in(rows)? && self.drop_without_way_out(rows)? {}
        Ok(())
    }

    /// Whether something was dropped.
    fn drop_without_way_out(&mut self, rows: &impl Rows) -> Result<bool> {
        let nodes = rows.nodes();
        let (features, below) = (nodes.features(), nodes.tokens().start);
        let mut has_way = vec![false; below];
        let mut dropped = false;
        let mut numbers = Vec::new();
        // All that a feature adds to stands in rows after its own.
        for target in nodes.targets().rev().filter(|target| self.initial[*target]) {
            if features.contains(&target) && !has_way[target] {
                dropped |= std::mem::replace(&mut self.kept[target], false);
            }
            if self.kept[target] {
                rows.read(target, &mut numbers)?;
                for source in (0..below).filter(|source| self.kept[*source]) {
                    has_way[source] |= self.counts(self.score(target, numbers[source]));
                }
            }
        }
        for error in nodes.errors().filter(|error| !has_way[*error]) {
            dropped |= std::mem::replace(&mut self.kept[error], false);
        }
        Ok(dropped)
    }

    /// Whether something was dropped.
    fn drop_without_way_in(&mut self, rows: &impl Rows) -> Result<bool> {
        let nodes = rows.nodes();
        let mut dropped = false;
        let mut numbers = Vec::new();
        for target in nodes.features() {
            if self.kept[target] {
                rows.read(target, &mut numbers)?;
                let mut sources = (0..nodes.tokens().end).filter(|source| self.kept[*source]);
                self.kept[target] = sources.any(|source| self.counts(self.score(target, numbers[source])));
                dropped |= !self.kept[target];
            }
        }
        Ok(dropped)
    }
}

/// Nodes whose influence reaches the threshold, tokens and logits.
fn by_influence(rows: &impl Rows, influence: &Influence, share: f64) -> Vec<bool> {
    let nodes = rows.nodes();
    let mut positive: Vec<f64> = influence.values.iter().copied().filter(|value| *value > 0.0).collect();
    let least = of_sorted(&mut positive, share);
    let mut kept: Vec<bool> = influence.values.iter().map(|value| *value > 0.0 && *value >= least).collect();
    kept[nodes.tokens()].fill(true);
    kept[nodes.logits()].fill(true);
    kept
}
