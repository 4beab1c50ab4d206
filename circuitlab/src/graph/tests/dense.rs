//! Whole matrices in memory, and what to do with them said as plainly as can be.

use std::cmp::Ordering;

use circuitlab_core::random::Stream;

use super::super::{ActiveFeature, LogitNode, Nodes, Rows};
use crate::Result;

/// A graph in memory.
#[derive(Debug, Clone)]
pub(in crate::graph) struct Dense {
    pub(in crate::graph) nodes: Nodes,
    pub(in crate::graph) numbers: Vec<f32>,
}

impl Dense {
    pub(in crate::graph) fn new(nodes: Nodes) -> Self {
        let numbers = vec![0.0; nodes.count().pow(2)];
        Self { nodes, numbers }
    }

    pub(in crate::graph) fn at(&mut self, target: usize, source: usize) -> &mut f32 {
        &mut self.numbers[target * self.nodes.count() + source]
    }
}

impl Rows for Dense {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn read(&self, node: usize, row: &mut Vec<f32>) -> Result<()> {
        let count = self.nodes.count();
        row.clear();
        row.extend_from_slice(&self.numbers[node * count..(node + 1) * count]);
        Ok(())
    }
}

/// A graph of random sizes and numbers, some of them 0.
pub(in crate::graph) fn random(seed: u64, closing: bool) -> Dense {
    let mut random = Numbers(Stream::new(seed, "graph", 0));
    let (layers, seq) = (1 + random.below(4), 1 + random.below(4));
    let mut active = Vec::new();
    for layer in 0..layers {
        for position in 0..seq {
            for feature in (0..4).filter(|_| random.below(2) == 0).collect::<Vec<_>>() {
                let [layer, position] = [layer, position].map(|number| number as u32);
                active.push(ActiveFeature { layer, position, feature, activation: 1.0, pre_activation: 1.0 });
            }
        }
    }
    let selected = (0..active.len() as u32).filter(|_| random.below(4) > 0).collect();
    let logits = 1 + random.below(3);
    let logits = (0..logits).map(|id| LogitNode { label: format!("t{id}"), id, probability: random.share() / logits as f64 }).collect();
    let nodes = Nodes { layers, tokens: vec![3; seq], special: vec![0], active, selected, logits, closing };
    nodes.check().expect("in order");
    let mut graph = Dense::new(nodes);
    for target in graph.nodes.targets() {
        let layer = if graph.nodes.features().contains(&target) { graph.nodes.feature(target).layer as usize } else { layers };
        let earlier = graph.nodes.features_below(layer).chain(graph.nodes.errors().start..graph.nodes.closing().end);
        for source in earlier {
            let number = (random.share() as f32 - 0.5).powi(3);
            *graph.at(target, source) = if random.below(3) == 0 { 0.0 } else { number };
        }
    }
    graph
}

struct Numbers(Stream);

impl Numbers {
    fn below(&mut self, count: usize) -> usize {
        (self.0.next_u64() % count as u64) as usize
    }

    fn share(&mut self) -> f64 {
        self.0.uniform()
    }
}

/// What plain pruning gives: influences, nodes at first and in the end, scores of the edges that are kept in the end (0 for others).
pub(in crate::graph) struct Plain {
    pub(in crate::graph) influence: Vec<f64>,
    pub(in crate::graph) initial: Vec<bool>,
    pub(in crate::graph) kept: Vec<bool>,
    pub(in crate::graph) edges: Vec<f64>,
}

type Matrix = Vec<Vec<f64>>;

fn normalised(matrix: &Matrix) -> Matrix {
    let row = |row: &Vec<f64>| {
        let total = row.iter().sum::<f64>().max(1e-10);
        row.iter().map(|number| number / total).collect()
    };
    matrix.iter().map(row).collect()
}

/// `w A + w A^2 + ..`, until nothing is left.
fn influence(normalised: &Matrix, weights: &[f64]) -> Vec<f64> {
    let step = |from: &[f64]| -> Vec<f64> {
        (0..from.len()).map(|source| from.iter().zip(normalised).map(|(weight, row)| weight * row[source]).sum()).collect()
    };
    let mut term = step(weights);
    let mut all = vec![0.0; weights.len()];
    while term.iter().any(|number| *number != 0.0) {
        all.iter_mut().zip(&term).for_each(|(sum, number)| *sum += number);
        term = step(&term);
    }
    all
}

fn threshold(numbers: impl Iterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = numbers.filter(|number| *number > 0.0).collect();
    sorted.sort_by(|left, right| right.partial_cmp(left).unwrap_or(Ordering::Equal));
    let total: f64 = sorted.iter().sum();
    let mut sum = 0.0;
    let past = sorted.iter().position(|number| {
        sum += number;
        sum / total >= share
    });
    past.map_or(f64::INFINITY, |at| if share < 1.0 { sorted[at] } else { 0.0 })
}

/// Pruning by whole matrices and rounds, as circuit-tracer does it; closing columns are taken out first.
pub(in crate::graph) fn plain_prune(graph: &Dense, node_share: f64, edge_share: f64) -> Plain {
    let nodes = &graph.nodes;
    let count = nodes.count();
    let weight = |node: usize| if nodes.logits().contains(&node) { nodes.logits[node - nodes.logits().start].probability } else { 0.0 };
    let weights: Vec<f64> = (0..count).map(weight).collect();
    let number = |target: usize, source: usize| f64::from(graph.numbers[target * count + source].abs());
    let open = |source: usize| !nodes.closing().contains(&source);
    let matrix: Matrix =
        (0..count).map(|target| (0..count).map(|source| if open(source) { number(target, source) } else { 0.0 }).collect()).collect();
    let influences = influence(&normalised(&matrix), &weights);
    let least = threshold(influences.iter().copied(), node_share);
    let always = |node: usize| nodes.tokens().contains(&node) || nodes.logits().contains(&node);
    let initial: Vec<bool> = (0..count).map(|node| always(node) || influences[node] > 0.0 && influences[node] >= least).collect();
    let both = |target: usize, source: usize| initial[target] && initial[source];
    let matrix: Matrix = (0..count)
        .map(|target| (0..count).map(|source| if both(target, source) { matrix[target][source] } else { 0.0 }).collect())
        .collect();
    let matrix = normalised(&matrix);
    let own: Vec<f64> = influence(&matrix, &weights).iter().zip(&weights).map(|(influence, weight)| influence + weight).collect();
    let mut edges: Vec<f64> = (0..count * count).map(|at| matrix[at / count][at % count] * own[at / count]).collect();
    let least = threshold(edges.iter().copied(), edge_share);
    edges.iter_mut().filter(|score| **score < least).for_each(|score| *score = 0.0);
    let mut kept = initial.clone();
    loop {
        let before = kept.clone();
        for node in 0..nodes.tokens().start {
            kept[node] &= (0..count).any(|target| edges[target * count + node] > 0.0);
            kept[node] &= !nodes.features().contains(&node) || (0..count).any(|source| edges[node * count + source] > 0.0);
        }
        (0..count * count).filter(|at| !kept[at / count] || !kept[at % count]).for_each(|at| edges[at] = 0.0);
        if kept == before {
            return Plain { influence: influences, initial, kept, edges };
        }
    }
}
