//! How much of the logits goes back to each node.

use super::{Nodes, Rows, Scores};
use crate::{Error, Result};

/// Below this a row counts as one without numbers, as in circuit-tracer.
const LEAST_TOTAL: f64 = 1e-10;

/// Influences of all nodes of a graph, and the scores that follow from them.
///
/// With every row of the matrix divided by the sum of its absolute numbers, the influence of a node is the weight of all paths from it to the
/// logits, each logit weighted by its probability: `v = w A + w A^2 + ..`. Closing nodes are left out of the sums, so that influences and
/// scores are those of the same graph without them, and their own influence is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Influence {
    /// Each node's; 0 for logits and closing nodes.
    pub values: Vec<f64>,
    /// What share of them ends where it should.
    pub scores: Scores,
}

impl Influence {
    /// Follows a graph from its logits down, in one pass over its rows: as features are sorted by layer, what a row passes on is all there
    /// when the pass comes to it. In memory there are a few numbers for each node and one row.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn of(rows: &impl Rows) -> Result<Self> {
        let nodes = rows.nodes();
        let errors = nodes.errors();
        let (mut reconstructed, mut total) = (0.0, 0.0);
        let mut flow = Flow::all(nodes);
        flow.descend(rows, |row| {
            let missed: f64 = row.numbers[errors.clone()].iter().map(|number| f64::from(number.abs())).sum();
            reconstructed += (1.0 - missed / row.total) * row.own;
            total += row.own;
            Ok(())
        })?;
        let values = flow.values;
        let [missed, tokens] = [errors, nodes.tokens()].map(|range| values[range].iter().sum::<f64>());
        // Errors and tokens have no rows: nothing of them is missed.
        let (reconstructed, total) = (reconstructed + missed + tokens, total + missed + tokens);
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let scores = Scores { replacement: share(tokens, tokens + missed), completeness: share(reconstructed, total) };
        Ok(Self { values, scores })
    }

    /// For each node the share of all influence that it and the nodes of more influence have: small for those that matter. It is what viewers
    /// compare with a threshold.
    pub fn cumulative(&self) -> Vec<f64> {
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.sort_by(|left, right| self.values[*right].total_cmp(&self.values[*left]));
        let total: f64 = order.iter().map(|node| self.values[*node]).sum();
        let mut cumulative = vec![1.0; order.len()];
        let mut sum = 0.0;
        for node in order.into_iter().filter(|_| total > 0.0) {
            sum += self.values[node];
            cumulative[node] = sum / total;
        }
        cumulative
    }
}

/// Influence on its way from the logits down, through some of the nodes.
pub(super) struct Flow {
    /// What has come to each node.
    pub(super) values: Vec<f64>,
    /// The columns that count, ascending.
    pub(super) sources: Vec<u32>,
    /// The rows that count, ascending.
    targets: Vec<u32>,
}

/// A row that influence goes through.
pub(super) struct FlowRow<'a> {
    /// Its node.
    pub(super) target: usize,
    /// The numbers, for all nodes.
    pub(super) numbers: &'a [f32],
    /// The sum of the absolute numbers of all columns that count, or hardly more than 0 where that is less.
    pub(super) total: f64,
    /// What comes to the node, its probability included where it is a logit.
    pub(super) own: f64,
}

impl Flow {
    /// Through all nodes but closing ones.
    pub(super) fn all(nodes: &Nodes) -> Self {
        Self::through(nodes, |_| true)
    }

    /// Through those nodes, of which closing ones never count.
    pub(super) fn through(nodes: &Nodes, counts: impl Fn(usize) -> bool) -> Self {
        let sources = (0..nodes.tokens().end).filter(|node| counts(*node)).map(|node| node as u32).collect();
        let targets = nodes.targets().filter(|node| counts(*node)).map(|node| node as u32).collect();
        Self { values: vec![0.0; nodes.count()], sources, targets }
    }

    /// Goes through the rows, from the logits down, and shows each once all that comes to it is there.
    pub(super) fn descend(&mut self, rows: &impl Rows, mut show: impl FnMut(&FlowRow<'_>) -> Result<()>) -> Result<()> {
        let nodes = rows.nodes();
        let logits = nodes.logits();
        let mut numbers = Vec::new();
        for target in self.targets.iter().rev().map(|target| *target as usize) {
            rows.read(target, &mut numbers)?;
            let short = || Error::Invalid(format!("row {target} has {} numbers for {} nodes", numbers.len(), nodes.count()));
            let numbers = numbers.get(..nodes.count()).ok_or_else(short)?;
            let total = self.sources.iter().map(|source| f64::from(numbers[*source as usize].abs())).sum::<f64>().max(LEAST_TOTAL);
            let probability = if logits.contains(&target) { nodes.logits[target - logits.start].probability } else { 0.0 };
            let own = self.values[target] + probability;
            if own > 0.0 {
                for source in self.sources.iter().map(|source| *source as usize) {
                    self.values[source] += f64::from(numbers[source].abs()) / total * own;
                }
            }
            show(&FlowRow { target, numbers, total, own })?;
        }
        Ok(())
    }
}
