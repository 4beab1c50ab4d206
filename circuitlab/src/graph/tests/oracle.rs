//! Graphs that circuit-tracer computed of small random models.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::tensors::TensorFile;
use serde_json::Value;
use tch::{Device, Kind};

use super::super::{ActiveFeature, GraphMeta, LogitNode, Nodes, PruneOptions};
use super::Dense;

pub(super) const CASES: [&str; 7] = [
    "gpt2_clt_full",
    "gpt2_clt_custom_targets",
    "gpt2_clt_token_targets",
    "llama_clt_full",
    "llama_clt_budget",
    "llama_plt_relu_skip",
    "llama_plt_topk",
];

/// One of circuit-tracer's graphs, with what it made of it.
pub(super) struct Case {
    pub(super) graph: Dense,
    pub(super) meta: GraphMeta,
    pub(super) options: PruneOptions,
    /// The tensors.
    pub(super) tensors: TensorFile,
    /// Scores and settings.
    pub(super) facts: Value,
    /// Its own graph file, and the entry of it in its list.
    pub(super) json: Value,
}

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/graphs/cases").join(case)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("reads")).expect("is JSON")
}

impl Case {
    pub(super) fn floats(&self, name: &str) -> Vec<f64> {
        floats(&self.tensors, name)
    }

    pub(super) fn whole(&self, name: &str) -> Vec<i64> {
        whole(&self.tensors, name)
    }

    pub(super) fn open(name: &str) -> Self {
        let tensors = TensorFile::open(&folder(name).join("oracle.safetensors")).expect("opens");
        let facts = json(&folder(name).join("meta.json"));
        let slug = name.replace('_', "-");
        let json = json(&folder(name).join(format!("graph_files/{slug}.json")));
        // Two cases have rows of their own for logits alone: features are those of another one.
        let whole_graph = tensors.contains("adjacency_matrix").expect("reads");
        let base = if whole_graph { name } else { "gpt2_clt_full" };
        let features = TensorFile::open(&folder(base).join("oracle.safetensors")).expect("opens");
        let nodes = nodes(&features, &tensors, &facts);
        let mut graph = Dense::new(nodes);
        let count = graph.nodes.count();
        if whole_graph {
            graph.numbers = narrow(&floats(&tensors, "adjacency_matrix"));
        } else {
            let rows = narrow(&floats(&features, "adjacency_matrix"));
            let columns = rows.len().isqrt();
            let shared = graph.nodes.tokens().end;
            for target in graph.nodes.features() {
                graph.numbers[target * count..][..shared].copy_from_slice(&rows[target * columns..][..shared]);
            }
            let first = graph.nodes.logits().start * count;
            graph.numbers[first..].copy_from_slice(&narrow(&floats(&tensors, "adjacency_logit_rows")));
        }
        assert_eq!(graph.numbers.len(), count * count);
        let text = |key: &str| json["metadata"][key].as_str().expect("a text").to_owned();
        let meta = GraphMeta {
            slug,
            scan: text("scan"),
            prompt: text("prompt"),
            prompt_tokens: serde_json::from_value(json["metadata"]["prompt_tokens"].clone()).expect("texts"),
            vocabulary: 256,
            ..GraphMeta::default()
        };
        let options = serde_json::from_value(facts["prune_kwargs"].clone()).expect("thresholds");
        Self { graph, meta, options, tensors, facts, json }
    }
}

fn floats(file: &TensorFile, name: &str) -> Vec<f64> {
    Vec::try_from(file.tensor(name, Some(Kind::Double), Device::Cpu).expect(name).reshape([-1])).expect("numbers")
}

fn whole(file: &TensorFile, name: &str) -> Vec<i64> {
    Vec::try_from(file.tensor(name, Some(Kind::Int64), Device::Cpu).expect(name).reshape([-1])).expect("numbers")
}

fn narrow(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|number| *number as f32).collect()
}

fn nodes(features: &TensorFile, logits: &TensorFile, facts: &Value) -> Nodes {
    let small = |numbers: Vec<i64>| numbers.into_iter().map(|number| number as u32).collect::<Vec<_>>();
    let keys = small(whole(features, "active_features"));
    let values = floats(features, "activation_values").into_iter().zip(floats(features, "pre_activations_of_active"));
    let feature = |(key, (activation, pre_activation)): (&[u32], (f64, f64))| {
        let (activation, pre_activation) = (activation as f32, pre_activation as f32);
        ActiveFeature { layer: key[0], position: key[1], feature: key[2], activation, pre_activation }
    };
    let targets = facts["logit_targets"].as_array().expect("targets");
    let weights = floats(logits, "logit_probabilities");
    let logit = |(target, probability): (&Value, f64)| LogitNode {
        label: target["token_str"].as_str().expect("a text").to_owned(),
        id: target["vocab_idx"].as_u64().expect("an id") as usize,
        probability,
    };
    let nodes = Nodes {
        layers: features.layout("error_vectors").expect("is there").shape[0] as usize,
        tokens: small(whole(features, "input_ids")),
        special: vec![0],
        active: keys.chunks_exact(3).zip(values).map(feature).collect(),
        selected: small(whole(features, "selected_features")),
        logits: targets.iter().zip(weights).map(logit).collect(),
        closing: false,
    };
    nodes.check().expect("in order");
    nodes
}
