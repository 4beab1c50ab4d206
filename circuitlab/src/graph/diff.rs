//! In what two graphs differ.

use std::collections::HashMap;

use serde::Serialize;

use super::{View, ViewNode};

/// In what two graphs differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphDiff {
    /// Whether both are of the same prompt.
    pub same_prompt: bool,
    /// Nodes that both have.
    pub shared_nodes: usize,
    /// Nodes that the first alone has, by influence: the ids.
    pub only_first: Vec<String>,
    /// Nodes that the second alone has, by influence: the ids.
    pub only_second: Vec<String>,
    /// Edges that both have, with whatever weights.
    pub shared_links: usize,
    /// Edges that the first alone has.
    pub links_only_first: usize,
    /// Edges that the second alone has.
    pub links_only_second: usize,
    /// Edges of different weights, the greatest difference first; only as many as were asked for.
    pub links: Vec<LinkDiff>,
    /// The replacement scores of both, where they are known.
    pub replacement_score: [Option<f64>; 2],
    /// The completeness scores of both, where they are known.
    pub completeness_score: [Option<f64>; 2],
}

/// An edge in two graphs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkDiff {
    /// The id of the node that adds.
    pub source: String,
    /// The id of the node that is added to.
    pub target: String,
    /// Its weight in the first graph, where it has it.
    pub first: Option<f32>,
    /// Its weight in the second graph, where it has it.
    pub second: Option<f32>,
}

impl LinkDiff {
    /// How much more it weighs in the second graph; no edge weighs nothing.
    pub fn difference(&self) -> f64 {
        f64::from(self.second.unwrap_or(0.0)) - f64::from(self.first.unwrap_or(0.0))
    }
}

/// Compares two graphs, by the ids of their nodes, with the `top` edges whose weights differ most.
pub fn diff(first: &View, second: &View, top: usize) -> GraphDiff {
    let [ids, others] = [first, second].map(|view| view.nodes.iter().map(|node| node.node_id.as_str()).collect::<Vec<_>>());
    let places: HashMap<&str, u32> = ids.iter().enumerate().map(|(place, id)| (*id, place as u32)).collect();
    // Nodes of the second graph, as places in the first, or beyond it.
    let beyond = ids.len() as u32;
    let mapped: Vec<u32> = others.iter().enumerate().map(|(at, id)| places.get(id).copied().unwrap_or(beyond + at as u32)).collect();
    let id = |place: u32| if place < beyond { ids[place as usize] } else { others[(place - beyond) as usize] };
    let mut weights: HashMap<(u32, u32), [Option<f32>; 2]> = HashMap::with_capacity(first.links.len());
    for link in &first.links {
        weights.entry((link.source, link.target)).or_default()[0] = Some(link.weight);
    }
    for link in &second.links {
        let ends = (mapped[link.source as usize], mapped[link.target as usize]);
        weights.entry(ends).or_default()[1] = Some(link.weight);
    }
    let count = |present: [bool; 2]| weights.values().filter(|both| both.map(|weight| weight.is_some()) == present).count();
    let (shared_links, links_only_first, links_only_second) = (count([true, true]), count([true, false]), count([false, true]));
    let mut links: Vec<LinkDiff> = weights
        .iter()
        .filter(|(_, [first, second])| first != second)
        .map(|((source, target), [first, second])| LinkDiff {
            source: id(*source).to_owned(),
            target: id(*target).to_owned(),
            first: *first,
            second: *second,
        })
        .collect();
    links.sort_by(|left, right| {
        let by_difference = right.difference().abs().total_cmp(&left.difference().abs());
        by_difference.then_with(|| (&left.target, &left.source).cmp(&(&right.target, &right.source)))
    });
    links.truncate(top);
    let shared: Vec<bool> = mapped.iter().map(|place| *place < beyond).collect();
    let mut in_both = vec![false; ids.len()];
    mapped.iter().filter(|place| **place < beyond).for_each(|place| in_both[*place as usize] = true);
    GraphDiff {
        same_prompt: first.metadata.get("prompt") == second.metadata.get("prompt"),
        shared_nodes: shared.iter().filter(|shared| **shared).count(),
        only_first: by_influence(&first.nodes, &in_both),
        only_second: by_influence(&second.nodes, &shared),
        shared_links,
        links_only_first,
        links_only_second,
        links,
        replacement_score: [first, second].map(|view| view.score("replacement_score")),
        completeness_score: [first, second].map(|view| view.score("completeness_score")),
    }
}

/// The ids of nodes that are not among the shared ones, those that matter most first.
fn by_influence(nodes: &[ViewNode], shared: &[bool]) -> Vec<String> {
    let mut own: Vec<&ViewNode> = nodes.iter().zip(shared).filter(|(_, shared)| !**shared).map(|(node, _)| node).collect();
    // Small for those that matter; nothing for logits.
    own.sort_by(|left, right| left.influence.unwrap_or(0.0).total_cmp(&right.influence.unwrap_or(0.0)));
    own.into_iter().map(|node| node.node_id.clone()).collect()
}
