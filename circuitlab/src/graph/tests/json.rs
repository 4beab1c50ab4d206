//! Files for viewers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{
    GRAPH_LIST, Graph, GraphFile, GraphMeta, GraphWriter, JsonOptions, PruneOptions, Pruned, Rows, View, diff, flow, paths, write_into,
};
use super::oracle::{CASES, Case};
use super::schema::faults;
use super::{Dense, random};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("reads")).expect("is JSON")
}

/// A node's key: errors have had two forms of ids.
fn key(node: &Value) -> (String, String) {
    let text = |name: &str| node[name].as_str().expect(name).to_owned();
    match text("feature_type").as_str() {
        "mlp reconstruction error" => ("error".to_owned(), format!("{} {}", text("layer"), node["ctx_idx"])),
        _ => (text("feature_type"), text("node_id")),
    }
}

/// In what a file differs from one by circuit-tracer; ids and layouts of errors may.
fn differences(expected: &Value, found: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for name in ["slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version"] {
        if expected["metadata"][name] != found["metadata"][name] {
            all.push(format!("metadata.{name}: {}", found["metadata"][name]));
        }
    }
    let nodes = |graph: &Value| graph["nodes"].as_array().expect("a list").clone();
    let order = |graph: &Value| nodes(graph).iter().map(key).collect::<Vec<_>>();
    if order(expected) != order(found) {
        all.push("other nodes, or in another order".to_owned());
        return all;
    }
    for (expected, found) in nodes(expected).iter().zip(&nodes(found)) {
        let error = key(expected).0 == "error";
        for (name, value) in expected.as_object().expect("an object") {
            let tolerance = match name.as_str() {
                "token_prob" | "influence" => 1e-5,
                "activation" => 1e-4,
                "node_id" | "jsNodeId" if error => continue,
                _ => 0.0,
            };
            let near = match (value.as_f64(), found[name].as_f64()) {
                (Some(expected), Some(found)) => (expected - found).abs() <= tolerance,
                _ => *value == found[name],
            };
            if !near {
                all.push(format!("{:?}.{name}: {} for {value}", key(expected), found[name]));
            }
        }
        let names = |node: &Value| node.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
        if names(expected) != names(found) {
            all.push(format!("{:?} has the fields {:?}", key(expected), names(found)));
        }
    }
    let counts = |graph: &Value| graph["links"].as_array().map(Vec::len);
    if counts(expected) != counts(found) {
        all.push(format!("{:?} links", counts(found)));
    }
    all
}

/// Links by the ids of their nodes, as a view resolved them.
fn links(view: &View) -> Vec<(&str, &str, f32)> {
    let id = |place: u32| view.nodes[place as usize].node_id.as_str();
    view.links.iter().map(|link| (id(link.target), id(link.source), link.weight)).collect()
}

#[test]
fn files_are_those_of_circuit_tracer() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shared_ids = 0;
    for name in CASES {
        let case = Case::open(name);
        let pruned = Pruned::of(&case.graph, case.options).expect(name);
        let path = write_into(folder.path(), &case.graph, &case.meta, &pruned, &JsonOptions::default()).expect("writes");
        let found = read(&path);
        assert_eq!(differences(&case.json, &found), Vec::<String>::new(), "{name}");
        assert_eq!(faults(&found), Vec::<String>::new(), "{name}");
        let ids: BTreeSet<&str> = found["nodes"].as_array().expect("a list").iter().filter_map(|node| node["node_id"].as_str()).collect();
        assert_eq!(ids.len(), found["nodes"].as_array().map_or(0, Vec::len), "{name}: ids are there twice");
        // Both files are the same graph once they are read, and that which was in memory.
        let theirs = folder.path().join("theirs.json");
        fs::copy(
            format!("{}/../tests/fixtures/graphs/cases/{name}/graph_files/{}.json", env!("CARGO_MANIFEST_DIR"), case.meta.slug),
            &theirs,
        )
        .expect("copies");
        let theirs = View::read(&theirs).expect(name);
        let ours = View::read(&path).expect(name);
        assert_eq!(ours, View::of(&case.graph, &case.meta, &pruned, &JsonOptions::default()).expect(name));
        assert_eq!(links(&ours), links(&theirs), "{name}");
        assert_eq!(diff(&ours, &theirs, 5).links.len() + diff(&ours, &theirs, 5).only_first.len(), 0);
        let original = case.json["nodes"].as_array().expect("a list");
        shared_ids += original.len() - original.iter().filter_map(|node| node["node_id"].as_str()).collect::<BTreeSet<_>>().len();
    }
    assert!(shared_ids > 0, "no file of circuit-tracer has an id twice, which this is about too");
    let list = read(&folder.path().join(GRAPH_LIST));
    assert_eq!(list["graphs"].as_array().map(Vec::len), Some(CASES.len()));
    assert_eq!(faults(&json!({"metadata": list["graphs"][0], "qParams": {}, "nodes": [], "links": []})), Vec::<String>::new());
    assert!(list["graphs"][0]["replacement_score"].is_f64() && list["graphs"][0]["completeness_score"].is_f64());
}

#[test]
fn what_viewers_would_refuse_is_told() {
    let case = Case::open("llama_clt_budget");
    let refused = |change: fn(&mut Value), words: &str| {
        let mut graph = case.json.clone();
        change(&mut graph);
        let found = faults(&graph);
        assert!(found.iter().any(|fault| fault.contains(words)), "{words}: {found:?}");
    };
    assert_eq!(faults(&case.json), Vec::<String>::new());
    refused(|graph| drop(graph.as_object_mut().expect("an object").remove("qParams")), "graph.qParams is missing");
    refused(|graph| graph["nodes"] = json!({}), "graph.nodes is {}");
    refused(|graph| graph["metadata"]["slug"] = json!(3), "metadata.slug is 3");
    refused(|graph| graph["metadata"]["prompt_tokens"] = json!(["a", 1]), "metadata.prompt_tokens");
    refused(|graph| graph["metadata"]["node_threshold"] = Value::Null, "metadata.node_threshold is null");
    refused(|graph| graph["metadata"]["generation_settings"] = json!({"batch_size": 0.5}), "metadata.generation_settings.batch_size");
    refused(|graph| graph["metadata"]["info"] = json!({"generator": {"name": 1}}), "metadata.info.generator.name");
    refused(|graph| graph["qParams"]["pinnedIds"] = json!("a"), "qParams.pinnedIds");
    refused(|graph| drop(graph["nodes"][0].as_object_mut().expect("an object").remove("feature")), "nodes[0].feature is missing");
    refused(|graph| graph["nodes"][1]["feature"] = json!(1.5), "nodes[1].feature is 1.5");
    refused(|graph| graph["nodes"][2]["influence"] = json!("a lot"), "nodes[2].influence");
    refused(|graph| graph["links"][0]["weight"] = Value::Null, "links[0].weight is null");
}

#[test]
fn what_is_asked_for_is_in_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut graph = random(1, true);
    // Enough features and numbers to have something of each kind.
    while graph.nodes.selected.len() < 4 || graph.nodes.tokens.len() < 3 {
        graph = random(graph.nodes.count() as u64 + 17, true);
    }
    let nodes = &graph.nodes;
    let meta = GraphMeta {
        slug: "own".into(),
        prompt_tokens: nodes.tokens.iter().map(|_| "a".to_owned()).collect(),
        generation_settings: json!({"max_feature_nodes": 3}),
        ..GraphMeta::default()
    };
    let all = PruneOptions { node_threshold: 1.0, edge_threshold: 1.0 };
    let pruned = Pruned::of(&graph, all).expect("prunes");
    let kept = (0..nodes.features().end).find(|node| pruned.kept[*node]).expect("a feature");
    let feature = *nodes.feature(kept);
    let options = JsonOptions {
        slug: Some("another".into()),
        closing: true,
        labels: BTreeMap::from([((feature.layer as usize, feature.feature as usize), "cats".to_owned())]),
        qk_tracing_results: BTreeMap::from([(kept, json!({"pair_wise_contributors": [["E_3_0", "E_3_1", 0.5]]}))]),
        qk_only_nodes: Some(json!({"0_9_9": {"node_id": "0_9_9"}})),
        feature_details: Some(json!({"neuronpedia_source_set": "mine"})),
    };
    let path = write_into(folder.path(), &graph, &meta, &pruned, &options).expect("writes");
    assert!(path.ends_with("another.json"));
    let file = read(&path);
    assert_eq!(faults(&file), Vec::<String>::new());
    let metadata = &file["metadata"];
    assert_eq!(metadata["generation_settings"], json!({"max_feature_nodes": 3}));
    assert_eq!(metadata["pruning_settings"], json!({"node_threshold": 1.0, "edge_threshold": 1.0}));
    assert_eq!(metadata["feature_details"], json!({"neuronpedia_source_set": "mine"}));
    assert_eq!(file["qk_only_nodes"]["0_9_9"]["node_id"], json!("0_9_9"));
    let list = file["nodes"].as_array().expect("a list");
    let labelled: Vec<&Value> = list.iter().filter(|node| node["clerp"] == "cats").collect();
    assert!(labelled.iter().any(|node| node["qk_tracing_results"]["pair_wise_contributors"][0][2] == 0.5), "{labelled:?}");
    assert_eq!(list.iter().filter(|node| node.get("qk_tracing_results").is_some()).count(), 1);
    assert!(list.iter().any(|node| node["feature_type"] == "bias" && node["node_id"] == "E_bias_own_0" && node["feature"].is_null()));
    let plain = write_into(folder.path(), &graph, &meta, &pruned, &JsonOptions::default()).expect("writes");
    assert!(read(&plain)["nodes"].as_array().expect("a list").iter().all(|node| node["feature_type"] != "bias"));
    assert_eq!(View::read(&path).expect("reads"), View::of(&graph, &meta, &pruned, &options).expect("is that"));
    for slug in ["", "a/b", "..", "a\\b", "graph-metadata", ".x", "a\nb", "C:a"] {
        let options = JsonOptions { slug: Some(slug.to_owned()), ..JsonOptions::default() };
        let error = write_into(folder.path(), &graph, &meta, &pruned, &options).expect_err(slug).to_string();
        assert!(error.contains("cannot name a file") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_graph_of_circuit_tracer_goes_through_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let case = Case::open("llama_clt_budget");
    let path = folder.path().join("a.safetensors");
    let mut writer = GraphWriter::create(&path, &case.graph.nodes, &case.meta, &[]).expect("begins");
    let mut row = Vec::new();
    for node in case.graph.nodes.targets() {
        case.graph.read(node, &mut row).expect("is there");
        writer.row(node, &row).expect("writes");
    }
    writer.finish().expect("ends");
    let GraphFile::Matrix(graph) = GraphFile::open(&path).expect("opens") else { panic!("it has a matrix") };
    let pruned = Pruned::of(&*graph, case.options).expect("prunes");
    assert_eq!(pruned, Pruned::of(&case.graph, case.options).expect("prunes"));
    let json = folder.path().join("b.safetensors");
    super::super::write_json(&json, &*graph, &graph.meta, &pruned, &JsonOptions::default()).expect("writes");
    assert!(matches!(GraphFile::open(&json).expect("opens by what it holds"), GraphFile::View(_)));
    // The same bytes each time.
    let bytes = fs::read(&json).expect("reads");
    super::super::write_json(&json, &Graph::open(&path).expect("opens"), &case.meta, &pruned, &JsonOptions::default()).expect("writes");
    assert!(bytes == fs::read(&json).expect("reads"), "other bytes");
}

fn view(seed: u64) -> View {
    let graph: Dense = random(seed, false);
    let meta = GraphMeta { prompt_tokens: graph.nodes.tokens.iter().map(|_| "a".to_owned()).collect(), ..GraphMeta::default() };
    let pruned = Pruned::of(&graph, PruneOptions { node_threshold: 1.0, edge_threshold: 1.0 }).expect("prunes");
    View::of(&graph, &meta, &pruned, &JsonOptions::default()).expect("is that")
}

/// All paths to a node, one after the other: nodes from the first on, share, sign.
fn all_paths(view: &View, node: u32) -> Vec<(Vec<usize>, f64, bool)> {
    let into: Vec<_> = view.links.iter().filter(|link| link.target == node).collect();
    let total: f64 = into.iter().map(|link| f64::from(link.weight.abs())).sum();
    if into.is_empty() {
        return vec![(vec![node as usize], 1.0, true)];
    }
    let mut all = Vec::new();
    for link in into {
        for (mut nodes, share, positive) in all_paths(view, link.source) {
            nodes.push(node as usize);
            all.push((nodes, share * f64::from(link.weight.abs()) / total, positive == (link.weight > 0.0)));
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_greatest_paths_are_found(seed in any::<u64>(), top in 1_usize..12) {
        let view = view(seed);
        for logit in (0..view.nodes.len()).filter(|node| view.nodes[*node].is_logit()) {
            let mut all = all_paths(&view, logit as u32);
            all.retain(|path| path.0.len() > 1);
            prop_assert!(all.is_empty() || (all.iter().map(|path| path.1).sum::<f64>() - 1.0).abs() < 1e-9);
            all.sort_by(|left, right| right.1.total_cmp(&left.1));
            let flow = flow(&view, logit).expect("follows");
            for (node, flow) in flow.iter().enumerate() {
                let through: f64 = all.iter().filter(|path| path.0.contains(&node)).map(|path| path.1).sum();
                prop_assert!((flow - through).abs() < 1e-9 || all.is_empty());
            }
            let found = paths(&view, logit, top).expect("finds");
            prop_assert_eq!(found.len(), top.min(all.len()));
            for (found, expected) in found.iter().zip(&all) {
                prop_assert!((found.share - expected.1).abs() < 1e-9);
                let same = all.iter().find(|path| path.0 == found.nodes).expect("a path");
                prop_assert!((found.share - same.1).abs() < 1e-9 && found.positive == same.2);
            }
        }
    }

    #[test]
    fn whatever_is_read_panics_at_nothing(text in ".{0,60}", cut in 0_usize..4000) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.json");
        let whole = format!("{}/../tests/fixtures/graphs/cases/llama_clt_budget/graph_files/llama-clt-budget.json", env!("CARGO_MANIFEST_DIR"));
        let whole = fs::read_to_string(whole).expect("reads");
        let cut = whole.char_indices().map(|(at, _)| at).find(|at| *at >= cut).unwrap_or(0);
        for content in [text.clone(), format!("{{{text}"), format!("{}{text}", &whole[..cut])] {
            circuitlab_core::files::write_atomic(&path, |out| out.write_all(content.as_bytes())).expect("writes");
            let error = GraphFile::open(&path).expect_err("is no graph").to_string();
            prop_assert!(!error.contains('\n'), "{}", error);
        }
    }
}

#[test]
fn views_that_do_not_fit_together_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.json");
    let whole = Case::open("gpt2_clt_token_targets").json;
    let refused = |change: fn(&mut Value), words: &str| {
        let mut graph = whole.clone();
        change(&mut graph);
        circuitlab_core::files::write_atomic(&path, |out| out.write_all(graph.to_string().as_bytes())).expect("writes");
        let error = View::read(&path).expect_err(words).to_string();
        assert!(error.contains(words) && error.contains("a.json") && !error.contains('\n'), "{error}");
    };
    refused(|graph| *graph = json!({"graphs": []}), "it is no graph for viewers");
    refused(|graph| graph["links"][0]["source"] = json!("9_9_9"), "the node `9_9_9`, which is not there");
    refused(|graph| graph["links"][0]["weight"] = json!(1e300), "number out of range");
    refused(|graph| graph["nodes"][1]["node_id"] = graph["nodes"][0]["node_id"].clone(), "two nodes have the id");
    refused(|graph| graph["nodes"][1]["layer"] = json!([]), "a layer as a text or a whole number");
    refused(
        |graph| {
            let link = graph["links"][0].clone();
            let back = json!({"source": link["target"], "target": link["source"], "weight": 1.0});
            graph["links"].as_array_mut().expect("a list").push(back);
        },
        "must have no cycles",
    );
}
