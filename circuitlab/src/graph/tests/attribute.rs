//! Graphs of our own beside those of circuit-tracer, and whether they close.

use std::path::{Path, PathBuf};

use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::{LanguageModel, ModelSource, Registry};
use tch::Tensor;

use super::oracle::{CASES, Case};
use crate::Silent;
use crate::graph::{AttributeOptions, Attribution, Graph, Look, NamedTarget, Prompt, PruneOptions, Pruned, Rows, TargetChoice};
use crate::saved::SavedTranscoder;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/graphs")
}

fn registry() -> Registry {
    circuitlab_plugins::link();
    Registry::linked().expect("no name twice")
}

fn opened(case: &Case, dtype: FloatKind) -> (Box<dyn LanguageModel>, SavedTranscoder) {
    let folder = |key: &str| fixtures().join(case.facts[key].as_str().expect("a name"));
    let source = ModelSource { dtype, ..ModelSource::new(folder("model")) };
    let model = crate::model::open(&registry(), &source).expect("opens");
    let saved = SavedTranscoder::open(&registry(), &folder("transcoder"), DeviceName::default(), dtype).expect("opens");
    (model, saved)
}

fn prompt(case: &Case, model: &dyn LanguageModel) -> Prompt {
    let tokens = case.whole("input_ids").iter().map(|id| *id as u32).collect();
    Prompt::of_tokens(tokens, None, model.info()).expect("tokens")
}

/// What the case was computed with.
fn options(name: &str, case: &Case, model: &dyn LanguageModel) -> AttributeOptions {
    let given = &case.facts["attribute_kwargs"];
    let number = |key: &str| given[key].as_u64().map(|number| number as usize);
    let targets = match name {
        "gpt2_clt_token_targets" => TargetChoice::Named([7, 200, 33].map(NamedTarget::Token).into()),
        "gpt2_clt_custom_targets" => {
            let tokens = Tensor::from_slice(&case.whole("input_ids")).unsqueeze(0);
            let pass = model.freeze(&tokens, &mut circuitlab_core::hooks::NoHooks).expect("freezes").expect("an adjoint");
            let row = |id| pass.unembedding.get(id);
            let direction = |label: &str, weight, vector| NamedTarget::Direction { label: label.to_owned(), weight, vector };
            TargetChoice::Named(vec![direction("logit(120)-logit(130)", 0.7, row(120) - row(130)), direction("only-150", 0.3, row(150))])
        }
        _ => TargetChoice::Likeliest {
            most: number("max_n_logits").expect("a number"),
            share: given["desired_logit_prob"].as_f64().expect("a share"),
        },
    };
    AttributeOptions {
        targets,
        max_feature_nodes: number("max_feature_nodes"),
        batch_size: number("batch_size").expect("a number"),
        update_interval: number("update_interval").unwrap_or(4),
        ..AttributeOptions::default()
    }
}

/// Computes a case's graph.
fn computed(name: &str, case: &Case, dtype: FloatKind, change: impl FnOnce(&mut AttributeOptions)) -> (tempfile::TempDir, Graph) {
    let (model, saved) = opened(case, dtype);
    let prompt = prompt(case, &*model);
    let mut options = options(name, case, &*model);
    change(&mut options);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("graph.safetensors");
    let attribution = Attribution::new(&*model, &saved, &prompt, None, &options, false).expect("runs");
    attribution.write(&file, "slug", &Silent).expect("writes");
    (folder, Graph::open(&file).expect("opens"))
}

/// The whole matrix.
fn matrix(graph: &Graph) -> Vec<Vec<f32>> {
    let count = graph.nodes().count();
    let mut rows = vec![vec![0.0; count]; count];
    for node in graph.nodes().targets() {
        graph.read(node, &mut rows[node]).expect("reads");
    }
    rows
}

fn furthest(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |most, distance| if distance <= most { most } else { distance })
}

#[test]
fn graphs_are_circuit_tracers() {
    for name in CASES {
        let case = Case::open(name);
        let (_folder, graph) = computed(name, &case, FloatKind::F32, |_| {});
        let nodes = graph.nodes();
        let features: Vec<i64> = nodes.active.iter().flat_map(|own| [own.layer, own.position, own.feature].map(i64::from)).collect();
        assert_eq!(nodes.logits.iter().map(|logit| logit.id as i64).collect::<Vec<_>>(), case.whole("logit_token_ids"), "{name}");
        let chances = nodes.logits.iter().map(|logit| logit.probability);
        assert!(furthest(chances, case.floats("logit_probabilities")) < 2e-6, "{name}");
        let rows = matrix(&graph);
        if !case.tensors.contains("adjacency_matrix").expect("reads") {
            // Of these cases there are the targets' rows alone.
            let got = rows[nodes.logits().start..].concat();
            assert!(furthest(got.into_iter().map(f64::from), case.floats("adjacency_logit_rows")) < 2e-5, "{name}");
            continue;
        }
        assert_eq!(features, case.whole("active_features"), "{name}");
        assert_eq!(nodes.selected.iter().map(|at| i64::from(*at)).collect::<Vec<_>>(), case.whole("selected_features"), "{name}");
        let values = |of: fn(&crate::graph::ActiveFeature) -> f32| nodes.active.iter().map(move |own| f64::from(of(own)));
        assert!(furthest(values(|own| own.activation), case.floats("activation_values")) < 5e-5, "{name}");
        assert!(furthest(values(|own| own.pre_activation), case.floats("pre_activations_of_active")) < 5e-5, "{name}");
        let (got, expected) = (rows.concat(), case.floats("adjacency_matrix"));
        assert_eq!(got.len(), expected.len(), "{name}");
        let distance = furthest(got.iter().map(|entry| f64::from(*entry)), expected);
        assert!(distance < 2e-5, "{name}: {distance:e}");
    }
}

#[test]
fn closed_rows_sum_to_what_they_explain() {
    for name in CASES {
        let case = Case::open(name);
        let (_folder, graph) = computed(name, &case, FloatKind::F32, |options| options.closing = true);
        let nodes = graph.nodes();
        let rows = matrix(&graph);
        let sum = |node: usize| rows[node].iter().map(|entry| f64::from(*entry)).sum::<f64>();
        let pre_acts = nodes.features().map(|node| f64::from(nodes.feature(node).pre_activation));
        let distance = furthest(nodes.features().map(sum), pre_acts);
        assert!(distance < 1e-4, "{name}: {distance:e}");
        // A logit's row sums to the logit less the mean of all; a direction's to its product with what the unembedding reads.
        let (model, _) = opened(&case, FloatKind::F32);
        let tokens = Tensor::from_slice(&case.whole("input_ids")).unsqueeze(0);
        let logits = model.forward(&tokens, &mut circuitlab_core::hooks::NoHooks).expect("runs").expect("logits").get(0).get(-1);
        let logit = |id: i64| logits.double_value(&[id]);
        let mean = logits.mean(None).double_value(&[]);
        let expected: Vec<f64> = match name {
            "gpt2_clt_custom_targets" => vec![logit(120) - logit(130), logit(150)],
            _ => nodes.logits.iter().map(|node| logit(node.id as i64) - mean).collect(),
        };
        let distance = furthest(nodes.logits().map(sum), expected);
        assert!(distance < 1e-4, "{name}: {distance:e}");

        // What closes a graph changes nothing else in it.
        let (_folder, open) = computed(name, &case, FloatKind::F32, |_| {});
        let (plain, first) = (matrix(&open), open.nodes().logits().start);
        for (ours, theirs) in nodes.targets().zip(open.nodes().targets()) {
            assert_eq!(rows[ours][..first], plain[theirs][..first], "{name}");
        }
    }
}

#[test]
fn a_budget_chooses_rows_and_columns_of_the_whole() {
    let case = Case::open("llama_clt_budget");
    let (_folder, some) = computed("llama_clt_budget", &case, FloatKind::F32, |_| {});
    let (_folder, all) = computed("llama_clt_budget", &case, FloatKind::F32, |options| options.max_feature_nodes = None);
    let (few, many) = (matrix(&some), matrix(&all));
    // Where each node of the smaller graph is in the larger one.
    let (chosen, whole) = (some.nodes(), all.nodes());
    let place = |node: usize| {
        if node < chosen.selected.len() { chosen.selected[node] as usize } else { node - chosen.selected.len() + whole.selected.len() }
    };
    let mut furthest = 0.0_f32;
    for target in chosen.targets() {
        for source in 0..chosen.count() {
            furthest = furthest.max((few[target][source] - many[place(target)][place(source)]).abs());
        }
    }
    // Batches of other sizes are added up in another order.
    assert!(furthest < 1e-5, "{furthest:e}");
}

#[test]
fn little_memory_gives_the_same_graph() {
    for name in ["llama_clt_full", "llama_plt_relu_skip"] {
        let case = Case::open(name);
        let (_folder, roomy) = computed(name, &case, FloatKind::F32, |options| options.closing = true);
        let (_folder, tight) = computed(name, &case, FloatKind::F32, |options| (options.closing, options.memory_bytes) = (true, 4));
        let distance = furthest(matrix(&roomy).concat().into_iter().map(f64::from), matrix(&tight).concat().into_iter().map(f64::from));
        assert!(distance < 1e-5, "{name}: {distance:e}");
    }
}

#[test]
fn a_second_graph_is_the_first() {
    let case = Case::open("gpt2_clt_full");
    let (_folder, first) = computed("gpt2_clt_full", &case, FloatKind::F32, |_| {});
    let (_other, second) = computed("gpt2_clt_full", &case, FloatKind::F32, |_| {});
    assert_eq!(std::fs::read(first.path()).expect("reads"), std::fs::read(second.path()).expect("reads"));
}

/// A case's pass, ready to be looked into, with its graph.
fn attributed<R>(name: &str, look: impl FnOnce(&Attribution<'_>, &Graph, &dyn LanguageModel) -> R) -> R {
    let case = Case::open(name);
    let (model, saved) = opened(&case, FloatKind::F32);
    let prompt = prompt(&case, &*model);
    let options = options(name, &case, &*model);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("graph.safetensors");
    let attribution = Attribution::new(&*model, &saved, &prompt, None, &options, false).expect("runs");
    attribution.write(&file, "slug", &Silent).expect("writes");
    look(&attribution, &Graph::open(&file).expect("opens"), &*model)
}

#[test]
fn head_loadings_sum_to_their_edges() {
    for name in ["llama_clt_full", "gpt2_clt_full", "llama_plt_relu_skip", "gpt2_clt_token_targets"] {
        attributed(name, |attribution, graph, _| {
            let pruned = Pruned::of(graph, PruneOptions { node_threshold: 0.9, edge_threshold: 0.98 }).expect("prunes");
            let found = attribution.head_loadings(graph, &pruned, &Silent).expect("splits");
            assert!(found.edges.len() > 50, "{name}: {} edges cross positions", found.edges.len());
            let sums: Vec<f64> =
                Vec::try_from(found.loadings.sum_dim_intlist([1, 2].as_slice(), false, tch::Kind::Double)).expect("numbers");
            let distance = furthest(sums, found.weights.iter().map(|weight| f64::from(*weight)));
            assert!(distance < 1e-5, "{name}: {distance:e}");
        });
    }
}

#[test]
fn parts_of_scores_sum_to_them() {
    for name in ["llama_clt_full", "gpt2_clt_full", "llama_plt_relu_skip"] {
        attributed(name, |attribution, graph, model| {
            let (layers, heads, last) = (model.info().layers, model.info().heads, graph.nodes.tokens.len() - 1);
            for (layer, head, query, key) in [(0, 0, 3, 1), (1, heads - 1, last, 0), (layers - 1, 1, last, last), (layers - 1, 0, 5, 2)] {
                let parts = attribution.looks(&[Look { layer, head, query, key }], 5).expect("splits").remove(0);
                assert!((parts.score - parts.sum_of_pairs).abs() < 1e-4, "{name}: {parts:?}");
                // Below the first layer there are tokens and biases alone.
                let least = if layer == 0 { 1 } else { 5 };
                assert!(parts.pairs.len() >= least && parts.query_marginals.len() >= least.min(2), "{name}: {parts:?}");
                assert!(parts.pairs.windows(2).all(|two| two[0].2.abs() >= two[1].2.abs()), "{name}: {parts:?}");
            }
            assert!(attribution.looks(&[Look { layer: layers, head: 0, query: 1, key: 1 }], 1).is_err());
            assert!(attribution.looks(&[Look { layer: 0, head: 0, query: 1, key: 2 }], 1).is_err());
        });
    }
}
