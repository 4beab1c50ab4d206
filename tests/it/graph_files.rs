//! Graphs that are there: pruned, scored, shown and compared, from files that another implementation's numbers were put into.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, repository, stderr, succeed};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json as value};

fn case(name: &str) -> PathBuf {
    repository().join("tests/fixtures/graphs/cases").join(name)
}

fn write(path: &Path, content: &[u8]) {
    fs::File::create(path).and_then(|mut file| std::io::Write::write_all(&mut file, content)).expect("writes");
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

fn viewer_file(name: &str) -> PathBuf {
    case(name).join(format!("graph_files/{}.json", name.replace('_', "-")))
}

/// circuit-tracer's numbers as a file of a graph with its matrix, put together with nothing of ours.
fn graph(folder: &Path, name: &str) -> PathBuf {
    let bytes = fs::read(case(name).join("oracle.safetensors")).expect("a file");
    let oracle = SafeTensors::deserialize(&bytes).expect("safetensors");
    let facts = read(&case(name).join("meta.json"));
    let shown = read(&viewer_file(name));
    let labels: Vec<&Value> = facts["logit_targets"].as_array().expect("targets").iter().map(|target| &target["token_str"]).collect();
    let note = value!({
        "version": 1,
        "slug": name.replace('_', "-"),
        "scan": shown["metadata"]["scan"],
        "prompt": shown["metadata"]["prompt"],
        "prompt_tokens": shown["metadata"]["prompt_tokens"],
        "model_name": "a model",
        "model_fingerprint": "",
        "vocabulary": 256,
        "layers": oracle.tensor("error_vectors").expect("errors").shape()[0],
        "special_positions": [0],
        "closing": false,
        "logit_labels": labels,
    });
    let names = [
        "adjacency_matrix",
        "active_features",
        "activation_values",
        "pre_activations_of_active",
        "selected_features",
        "input_ids",
        "logit_token_ids",
    ];
    let weights = oracle.tensor("logit_probabilities").expect("weights");
    let wide: Vec<u8> = weights
        .data()
        .chunks_exact(4)
        .flat_map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes"))).to_le_bytes())
        .collect();
    let wide = TensorView::new(Dtype::F64, weights.shape().to_vec(), &wide).expect("fits");
    let views = names.map(|name| (name, oracle.tensor(name).expect(name)));
    let metadata = HashMap::from([("circuitlab_graph".to_owned(), note.to_string())]);
    let all = safetensors::serialize(views.into_iter().chain([("logit_probabilities", wide)]), Some(metadata)).expect("lays out");
    let path = folder.join(format!("{name}.safetensors"));
    write(&path, &all);
    path
}

#[test]
fn a_graph_is_pruned_as_circuit_tracer_prunes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["llama_clt_full", "llama_clt_budget", "llama_plt_topk"] {
        let graph = graph(folder.path(), name);
        let facts = read(&case(name).join("meta.json"));
        let thresholds: Vec<String> = ["node_threshold", "edge_threshold"].map(|key| facts["prune_kwargs"][key].to_string()).into();
        let thresholds = ["--node-threshold", &thresholds[0], "--edge-threshold", &thresholds[1]];
        let out = folder.path().join("pruned.json");
        let pruned = json(&[&["graph", "prune", arg(&graph), "--out", arg(&out)], &thresholds[..]].concat());
        for (ours, theirs) in [("nodes", "n_nodes"), ("nodes_kept", "nodes_kept"), ("edges_kept", "edges_kept")] {
            assert_eq!(pruned[ours], facts[theirs], "{name}");
        }
        for (ours, theirs) in [("replacement", "replacement_score"), ("completeness", "completeness_score")] {
            let near = (pruned[ours].as_f64().expect("a score") - facts[theirs].as_f64().expect("a score")).abs() < 1e-5;
            assert!(near, "{name}: {} for {}", pruned[ours], facts[theirs]);
        }
        let file = read(&out);
        assert_eq!(file["metadata"]["slug"], "pruned");
        // The file is circuit-tracer's: no node and no edge is in one of them alone, and no weight differs.
        for first in [&out, &graph] {
            let diff = json(&[&["graph", "diff", arg(first), arg(&viewer_file(name))], &thresholds[..]].concat());
            for list in ["only_first", "only_second", "links"] {
                assert_eq!(diff[list], value!([]), "{name}");
            }
            assert_eq!(diff["shared_nodes"], facts["json_nodes"], "{name}");
            assert_eq!(diff["shared_links"], facts["json_links"], "{name}");
        }
        let scores = json(&["graph", "scores", arg(&graph), arg(&out), arg(&viewer_file(name))]);
        assert_eq!(scores[0]["replacement"], scores[1]["replacement"]);
        assert_eq!((&scores[0]["nodes"], &scores[1]["nodes"]), (&facts["n_nodes"], &facts["json_nodes"]));
        assert_eq!(scores[2]["replacement"], Value::Null, "circuit-tracer writes none");
    }
    assert!(!folder.path().join("graph-metadata.json").exists(), "no list was asked for");
}

#[test]
fn a_graph_is_pruned_again_into_a_folder_of_graphs() {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = graph(folder.path(), "llama_clt_budget");
    let graphs = folder.path().join("graphs");
    fs::create_dir(&graphs).expect("a folder");
    let before = fs::read(&graph).expect("a file");
    let prune = |args: &[&str]| json(&[&["graph", "prune", arg(&graph), "--out", arg(&graphs)], args].concat());
    let first = prune(&[]);
    let bytes = fs::read(graphs.join("llama-clt-budget.json")).expect("a file");
    let few = prune(&["--node-threshold", "0.3", "--slug", "few"]);
    assert!(few["nodes_kept"].as_u64() < first["nodes_kept"].as_u64() && few["edges_kept"].as_u64() < first["edges_kept"].as_u64());
    assert_eq!(few["replacement"], first["replacement"], "scores are the whole graph's");
    assert_eq!(prune(&[]), first);
    assert!(bytes == fs::read(graphs.join("llama-clt-budget.json")).expect("a file"), "the same thresholds give other bytes");
    assert!(before == fs::read(&graph).expect("a file"), "the graph was changed");
    let slugs = || -> Vec<Value> {
        let list = read(&graphs.join("graph-metadata.json"));
        list["graphs"].as_array().expect("a list").iter().map(|graph| graph["slug"].clone()).collect()
    };
    assert_eq!(slugs(), ["few", "llama-clt-budget"]);
    // A file that the list has is entered anew.
    succeed(&["graph", "prune", arg(&graph), "--out", arg(&graphs.join("few.json")), "--node-threshold", "0.5"]);
    assert_eq!(slugs(), ["llama-clt-budget", "few"]);
    assert_eq!(read(&graphs.join("graph-metadata.json"))["graphs"][1]["node_threshold"], 0.5);
}

#[test]
fn paths_and_differences_are_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = graph(folder.path(), "llama_clt_budget");
    let shown = succeed(&["graph", "show", arg(&graph), "--top", "3"]);
    assert!(shown.starts_with("\"<s>the cat sat on the mat\": "), "{shown}");
    assert!(shown.contains("replacement 0.6429") && shown.contains("Output \"ke\" (p=0.") && shown.contains("features: L"), "{shown}");
    let more = succeed(&["graph", "show", arg(&graph), "--top", "1000"]);
    assert!(more.contains("@7 -> L") && more.contains(" - error"), "{more}");
    let shown = json(&["graph", "show", arg(&graph), "--top", "1000000"]);
    for logit in shown["logits"].as_array().expect("logits") {
        let shares: Vec<f64> =
            logit["paths"].as_array().expect("paths").iter().map(|path| path["share"].as_f64().expect("a share")).collect();
        assert!(shares.windows(2).all(|pair| pair[0] >= pair[1] - 1e-12) && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?}");
    }
    let theirs = succeed(&["graph", "show", arg(&viewer_file("gpt2_clt_full")), "--top", "1"]);
    assert!(theirs.contains("replacement -") && theirs.contains("Output \"ma\""), "{theirs}");
    let text = succeed(&["graph", "diff", arg(&viewer_file("gpt2_clt_full")), arg(&viewer_file("gpt2_clt_token_targets")), "--top", "2"]);
    for words in ["first alone", "only in the first, by influence:", "and ", "edges that differ most", "completeness"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let table = succeed(&["graph", "scores", arg(&graph)]);
    assert!(table.contains("0.6429") && table.contains("completeness"), "{table}");
}

#[test]
fn what_is_no_graph_is_told_in_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let graph = graph(folder.path(), "llama_clt_budget");
    let whole = fs::read(&graph).expect("a file");
    let out = path("out.json");
    let refused = |args: &[&str], words: &str| {
        let output = circuitlab(args).output().expect("runs");
        let told = stderr(&output);
        assert!(output.status.code() == Some(1), "{args:?}: {told}");
        let lines = told.lines().filter(|line| !line.starts_with("hint:")).count();
        assert!(told.contains(words) && lines == 1 && !told.contains("panicked"), "{args:?}: {told}");
        assert!(!out.exists() && !path("out.json.part").exists(), "{args:?} left a file");
    };
    let prune = |graph: &Path, words: &str| refused(&["graph", "prune", arg(graph), "--out", arg(&out)], words);
    prune(&path("none.safetensors"), "none.safetensors");
    prune(folder.path(), "");
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        write(&path("cut.safetensors"), &whole[..length]);
        prune(&path("cut.safetensors"), "not a whole safetensors file");
    }
    prune(&repository().join("tests/fixtures/graphs/gpt2/model.safetensors"), "it is no graph");
    prune(&viewer_file("llama_clt_budget"), "needs the matrix: the .safetensors file beside it");
    write(&path("text.txt"), b"the cat sat on the mat");
    prune(&path("text.txt"), "not a whole safetensors file");
    // A number of the matrix, the first of which is of the last row that is read.
    let mut nan = whole.clone();
    let matrix = SafeTensors::deserialize(&whole).expect("safetensors");
    let matrix = matrix.tensor("adjacency_matrix").expect("the matrix").data();
    let place = matrix.as_ptr() as usize - whole.as_ptr() as usize + matrix.len() - 200;
    nan[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    write(&path("nan.safetensors"), &nan);
    for command in ["scores", "show"] {
        refused(&["graph", command, arg(&path("nan.safetensors"))], "is NaN, which must be finite");
    }
    prune(&path("nan.safetensors"), "is NaN, which must be finite");
    for (flag, name) in [("--node-threshold", "node"), ("--edge-threshold", "edge")] {
        for wrong in ["1.5", "-0.1", "NaN", "inf"] {
            let words = format!("the {name} threshold is {wrong}, expected a share from 0 to 1");
            refused(&["graph", "prune", arg(&graph), "--out", arg(&out), flag, wrong], &words);
            refused(&["graph", "show", arg(&graph), flag, wrong], &words);
        }
    }
    refused(&["graph", "prune", arg(&graph), "--out", arg(&out), "--slug", "../x"], "cannot name a file");
    refused(&["graph", "prune", arg(&graph), "--out", arg(&path("none/out.json"))], "none/out.json");
    let list = case("llama_clt_budget").join("graph_files/graph-metadata.json");
    refused(&["graph", "show", arg(&list)], "it is no graph for viewers");
    refused(&["graph", "diff", arg(&graph), arg(&path("text.txt"))], "text.txt");
    write(&path("list.json"), b"[]");
    refused(&["graph", "scores", arg(&path("list.json"))], "list.json");
}
