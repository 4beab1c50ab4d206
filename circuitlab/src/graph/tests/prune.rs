//! Pruning, influences and scores.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{ActiveFeature, Influence, LogitNode, Nodes, PruneOptions, Pruned};
use super::oracle::{CASES, Case};
use super::{Dense, plain_prune, random};

fn edges(pruned: &Pruned, graph: &Dense) -> Vec<(usize, usize, f64)> {
    let mut edges = Vec::new();
    let show = |edge: super::super::Edge| {
        let number = graph.numbers[edge.target * graph.nodes.count() + edge.source];
        assert_eq!(edge.weight.to_bits(), number.to_bits());
        edges.push((edge.target, edge.source, edge.score));
        Ok(())
    };
    pruned.each_edge(graph, false, show).expect("goes through");
    assert_eq!(edges.len() as u64, pruned.edges);
    edges
}

fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max);
    // circuit-tracer computes in 32 bits; its own 32 and 64 bits differ by 6e-6.
    assert!(worst <= 1e-5, "{what}: {worst}");
}

#[test]
fn what_circuit_tracer_keeps_is_kept() {
    for name in CASES {
        let case = Case::open(name);
        let pruned = Pruned::of(&case.graph, case.options).expect(name);
        near(name, &pruned.influence, &case.floats("node_influence"));
        near(name, &pruned.cumulative, &case.floats("cumulative_scores"));
        let scores = [pruned.scores.replacement, pruned.scores.completeness];
        near(name, &scores, &["replacement_score", "completeness_score"].map(|key| case.facts[key].as_f64().expect("a score")));
        let mask = |mask: &[bool]| mask.iter().map(|kept| i64::from(*kept)).collect::<Vec<_>>();
        assert_eq!(mask(&pruned.kept), case.whole("node_mask"), "{name}");
        if case.tensors.contains("initial_node_mask").expect("reads") {
            assert_eq!(mask(&pruned.initial), case.whole("initial_node_mask"), "{name}");
        }
        let edges = edges(&pruned, &case.graph);
        let places: Vec<i64> = edges.iter().flat_map(|(target, source, _)| [*target as i64, *source as i64]).collect();
        assert_eq!(places, case.whole("edge_mask_indices"), "{name}");
        let found: Vec<f64> = edges.iter().map(|(_, _, score)| *score).collect();
        near(name, &found, &case.floats("edge_score_threshold_kept"));
    }
}

/// The graph of twelve nodes that circuit-tracer tests with.
fn twelve(edges: &[(usize, usize)]) -> Dense {
    let feature = |layer, feature| ActiveFeature { layer, position: 0, feature, activation: 1.0, pre_activation: 1.0 };
    let nodes = Nodes {
        layers: 2,
        tokens: vec![0, 1],
        special: Vec::new(),
        active: vec![feature(0, 0), feature(0, 1), feature(0, 2), feature(1, 0), feature(1, 1)],
        selected: (0..5).collect(),
        logits: vec![LogitNode { label: "a".into(), id: 0, probability: 1.0 }],
        closing: false,
    };
    let mut graph = Dense::new(nodes);
    assert_eq!(graph.nodes.count(), 12);
    for (target, source) in edges {
        *graph.at(*target, *source) = 1.0;
    }
    graph
}

#[test]
fn twelve_nodes_have_the_numbers_that_circuit_tracer_tests() {
    let logit = [1, 3, 6, 8].map(|source| (11, source));
    let graph = twelve(&[&logit[..], &[(3, 0), (3, 1), (3, 6), (1, 9), (1, 10), (0, 9)]].concat());
    let influence = Influence::of(&graph).expect("follows");
    let expected = [1.0 / 12.0, 1.0 / 3.0, 0.0, 0.25, 0.0, 0.0, 1.0 / 3.0, 0.0, 0.25, 0.25, 1.0 / 6.0, 0.0];
    influence.values.iter().zip(expected).for_each(|(found, expected)| assert!((found - expected).abs() < 1e-12, "{influence:?}"));
    // Tokens 5/12, errors 7/12.
    assert!((influence.scores.replacement - 5.0 / 12.0).abs() < 1e-12);
    let graph = twelve(&[&logit[..], &[(3, 1), (3, 6), (1, 9), (1, 10)]].concat());
    let all = PruneOptions { node_threshold: 1.0, edge_threshold: 1.0 };
    let pruned = Pruned::of(&graph, all).expect("prunes");
    for (target, _, score) in edges(&pruned, &graph) {
        let expected = BTreeMap::from([(11, 0.25), (3, 0.125), (1, 3.0 / 16.0)])[&target];
        assert!((score - expected).abs() < 1e-12, "{target}: {score}");
    }
    assert_eq!(pruned.edges, 8);
}

#[test]
fn thresholds_that_are_no_shares_are_refused() {
    let graph = twelve(&[(11, 9)]);
    for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        for options in [
            PruneOptions { node_threshold: wrong, ..PruneOptions::default() },
            PruneOptions { edge_threshold: wrong, ..PruneOptions::default() },
        ] {
            let error = Pruned::of(&graph, options).expect_err("no share").to_string();
            assert!(error.contains("threshold is") && error.contains("from 0 to 1"), "{error}");
        }
    }
}

#[test]
fn a_graph_without_edges_keeps_tokens_and_logits() {
    let graph = twelve(&[]);
    let pruned = Pruned::of(&graph, PruneOptions::default()).expect("prunes");
    assert_eq!((pruned.edges, pruned.kept.iter().filter(|kept| **kept).count()), (0, 3));
    assert_eq!((pruned.scores.replacement, pruned.scores.completeness), (0.0, 1.0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn streaming_is_as_whole_matrices(seed in any::<u64>(), closing in any::<bool>(), node_share in 0.0..=1.0, edge_share in 0.0..=1.0) {
        let graph = random(seed, closing);
        let options = PruneOptions { node_threshold: node_share, edge_threshold: edge_share };
        let pruned = Pruned::of(&graph, options).expect("prunes");
        let plain = plain_prune(&graph, node_share, edge_share);
        near("influence", &pruned.influence, &plain.influence);
        prop_assert_eq!(&pruned.initial, &plain.initial);
        prop_assert_eq!(&pruned.kept, &plain.kept);
        let found = edges(&pruned, &graph);
        let count = graph.nodes.count();
        let expected: Vec<usize> = (0..count * count).filter(|at| plain.edges[*at] > 0.0).collect();
        prop_assert_eq!(found.iter().map(|(target, source, _)| target * count + source).collect::<Vec<_>>(), expected);
        let scores: Vec<f64> = plain.edges.iter().copied().filter(|score| *score > 0.0).collect();
        near("scores", &found.iter().map(|edge| edge.2).collect::<Vec<_>>(), &scores);
    }

    /// What was pruned, pruned once more with all of it to be kept, is what it was; and a graph is not changed by being pruned.
    #[test]
    fn pruning_again_changes_nothing(seed in any::<u64>(), node_share in 0.0..=1.0, edge_share in 0.0..=1.0) {
        let graph = random(seed, false);
        let options = PruneOptions { node_threshold: node_share, edge_threshold: edge_share };
        let pruned = Pruned::of(&graph, options).expect("prunes");
        let mut smaller = Dense::new(graph.nodes.clone());
        for (target, source, _) in edges(&pruned, &graph) {
            *smaller.at(target, source) = graph.numbers[target * graph.nodes.count() + source];
        }
        let all = PruneOptions { node_threshold: 1.0, edge_threshold: 1.0 };
        let again = Pruned::of(&smaller, all).expect("prunes");
        prop_assert_eq!(&again.kept, &pruned.kept);
        let places = |edges: Vec<(usize, usize, f64)>| edges.into_iter().map(|edge| (edge.0, edge.1)).collect::<Vec<_>>();
        prop_assert_eq!(places(edges(&again, &smaller)), places(edges(&pruned, &graph)));
        prop_assert_eq!(Pruned::of(&graph, options).expect("prunes"), pruned);
    }

    /// Closing nodes change neither influences nor scores nor what is kept.
    #[test]
    fn closing_nodes_count_for_nothing(seed in any::<u64>()) {
        let closed = random(seed, true);
        let mut open = Dense::new(Nodes { closing: false, ..closed.nodes.clone() });
        let closing = closed.nodes.closing();
        let without = |node: usize| if node < closing.start { node } else { node - closing.len() };
        let shown: Vec<usize> = (0..closed.nodes.count()).filter(|node| !closing.contains(node)).collect();
        for target in &shown {
            for source in &shown {
                *open.at(without(*target), without(*source)) = closed.numbers[target * closed.nodes.count() + source];
            }
        }
        let [with, plain] = [&closed, &open].map(|graph| Pruned::of(graph, PruneOptions::default()).expect("prunes"));
        prop_assert_eq!(with.scores, plain.scores);
        prop_assert_eq!(shown.iter().map(|node| with.kept[*node]).collect::<Vec<_>>(), plain.kept.clone());
        prop_assert_eq!(shown.iter().map(|node| with.influence[*node]).collect::<Vec<_>>(), plain.influence.clone());
        prop_assert!(closing.clone().all(|node| !with.kept[node] && with.influence[node] == 0.0));
        let moved: Vec<_> = edges(&with, &closed).into_iter().map(|(target, source, score)| (without(target), source, score)).collect();
        prop_assert_eq!(moved, edges(&plain, &open));
        let mut shown = 0;
        with.each_edge(&closed, true, |edge| {
            assert!(with.kept[edge.target]);
            shown += u64::from(!closing.contains(&edge.source));
            Ok(())
        }).expect("goes through");
        prop_assert_eq!(shown, with.edges);
    }
}
