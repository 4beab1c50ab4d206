//! `attribute`: graphs of prompts.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, model, repository, stderr, succeed};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;

use crate::intervene::{compare, model_with_tokenizer};

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures/graphs")
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = file.tensor(name).unwrap_or_else(|_| panic!("no `{name}`"));
    assert_eq!(view.dtype(), Dtype::F32, "{name}");
    view.data().chunks_exact(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four")))).collect()
}

/// Each case that its flags can tell, with all tensors that circuit-tracer's run has but those of interventions.
#[test]
fn graphs_are_circuit_tracers_from_prompt_to_files() {
    let folder = tempfile::tempdir().expect("a folder");
    for (case, flags, tensors) in [
        ("llama_clt_full", &["--max-n-logits", "10"][..], 22),
        (
            "llama_clt_budget",
            &[
                "--max-n-logits",
                "4",
                "--desired-logit-prob",
                "0.6",
                "--batch-size",
                "8",
                "--update-interval",
                "2",
                "--max-feature-nodes",
                "96",
            ],
            22,
        ),
        ("llama_plt_relu_skip", &["--max-n-logits", "5"], 22),
        ("llama_plt_topk", &["--max-n-logits", "3"], 22),
        ("gpt2_clt_full", &["--max-n-logits", "5", "--desired-logit-prob", "0.8"], 22),
        ("gpt2_clt_token_targets", &["--target", "#7", "--target", "#200", "--target", "#33"], 10),
    ] {
        let place = fixtures().join("cases").join(case);
        let facts = read(&place.join("meta.json"));
        let named = |key: &str| facts[key].as_str().expect("a name");
        let own = folder.path().join(case);
        fs::create_dir(&own).expect("a folder");
        let model = model_with_tokenizer(&own, named("model"));
        let (clt, out) = (fixtures().join(named("transcoder")), own.join("all.safetensors"));
        let slug = case.replace('_', "-");
        let [nodes, edges] = ["node_threshold", "edge_threshold"].map(|key| facts["prune_kwargs"][key].to_string());
        let common = ["attribute", "--clt", arg(&clt), "--model", arg(&model), "--prompt", "the cat sat on the mat", "--out", arg(&own)];
        let rest = ["--slug", slug.as_str(), "--tensors", arg(&out), "--node-threshold", &nodes, "--edge-threshold", &edges];
        let found = json(&[&common[..], &rest, flags].concat());
        for score in ["replacement", "completeness"] {
            let apart = found[score].as_f64().expect("a score") - facts[format!("{score}_score")].as_f64().expect("a score");
            assert!(apart.abs() < 1e-5, "{case}, {score}: {apart:e}");
        }
        assert_eq!(compare(&out, &place.join("oracle.safetensors")), tensors, "{case}");
        let (ours, theirs) = (read(&own.join(format!("{slug}.json"))), read(&place.join(format!("graph_files/{slug}.json"))));
        for list in ["nodes", "links"] {
            assert_eq!(ours[list].as_array().expect("a list").len(), theirs[list].as_array().expect("a list").len(), "{case}, {list}");
        }
        assert_eq!(ours["metadata"]["prompt_tokens"], theirs["metadata"]["prompt_tokens"], "{case}");
        assert_eq!(read(&own.join("graph-metadata.json"))["graphs"][0]["slug"], slug.as_str(), "{case}");
    }
}

#[test]
fn a_file_of_prompts_makes_a_folder_of_graphs_and_again_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, prompts) = (fixtures().join("llama_clt"), folder.path().join("prompts.txt"));
    fs::File::create(&prompts).and_then(|mut file| std::io::Write::write_all(&mut file, b"the cat sat\n\non the mat\n")).expect("writes");
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    for out in [&first, &second] {
        let found =
            json(&["attribute", "--clt", arg(&clt), "--model", arg(&model), "--prompts", arg(&prompts), "--out", arg(out), "--closing"]);
        assert_eq!(found.as_array().expect("a list").len(), 2);
    }
    for name in ["prompt-1.json", "prompt-2.json", "prompt-1.safetensors", "prompt-2.safetensors", "graph-metadata.json"] {
        assert_eq!(fs::read(first.join(name)).expect("a file"), fs::read(second.join(name)).expect("a file"), "{name}");
    }
    // Nothing is left beside them.
    assert_eq!(fs::read_dir(&first).expect("a folder").count(), 5);
}

#[test]
fn head_loadings_and_traces_of_scores_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, out) = (fixtures().join("llama_clt"), folder.path().join("graph.json"));
    let common = ["attribute", "--clt", arg(&clt), "--model", arg(&model), "--prompt", "the cat sat on the mat", "--out", arg(&out)];
    let found = json(&[&common[..], &["--heads", "--qk", "1/2/6/3", "--qk-nodes", "3", "--qk-top", "4"]].concat());
    let look = &found["qk"][0];
    let number = |key: &str| look[key].as_f64().expect("a number");
    assert!((number("score") - number("sum_of_pairs")).abs() < 1e-4, "{look}");
    assert_eq!((&look["layer"], &look["head"], &look["query"], &look["key"]), (&1.into(), &2.into(), &6.into(), &3.into()));
    let bytes = fs::read(folder.path().join("graph.heads.safetensors")).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (weights, loadings) = (floats(&file, "weights"), floats(&file, "loadings"));
    assert!(weights.len() > 100 && loadings.len() == weights.len() * 4 * 4, "{} edges", weights.len());
    for (weight, own) in weights.iter().zip(loadings.chunks_exact(16)) {
        assert!((weight - own.iter().sum::<f64>()).abs() < 1e-5);
    }
    let graph = read(&out);
    let traced: Vec<&Value> =
        graph["nodes"].as_array().expect("nodes").iter().filter(|node| node.get("qk_tracing_results").is_some()).collect();
    assert_eq!(traced.len(), 3);
    for node in traced {
        for list in ["pair_wise_contributors", "top_q_marginal_contributors", "top_k_marginal_contributors"] {
            assert!((1..=4).contains(&node["qk_tracing_results"][list].as_array().expect("a list").len()), "{node}");
        }
    }
}

#[test]
fn the_bundled_model_without_a_transcoder_of_its_own_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = ["--model", arg(&model()), "--prompt", "I pray you, good my", "--out"].map(str::to_owned);
    let out = folder.path().join("graph.json");
    let clt = fixtures().join("llama_clt");
    let output = circuitlab(["attribute", "--clt", arg(&clt)].into_iter().map(str::to_owned).chain(tokens).chain([arg(&out).to_owned()]));
    let output = { output }.output().expect("starts");
    assert!(!output.status.success());
    assert!(stderr(&output).contains("differ in d_model: expected 64, got 128"), "{}", stderr(&output));
    assert!(!out.exists());
}

#[test]
fn bad_input_is_one_clear_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, out) = (fixtures().join("llama_clt"), folder.path().join("graph.json"));
    let long = vec!["1"; 300].join(",");
    for (flags, says) in [
        (&["--prompt", ""][..], "the prompt is empty"),
        (&["--tokens", &long], "tokens, and the model `llama` reads"),
        (&["--tokens", "1,5,999"], "token 999 is unknown"),
        (&["--tokens", "1"], "nothing but special tokens"),
        (&["--prompt", "the cat", "--target", " the mat"], "tokens ("),
        (&["--prompt", "the cat", "--target", "#256"], "the target token 256 is unknown"),
        (&["--prompt", "the cat", "--target", "#7", "--target", "#7"], "is there twice"),
        (&["--prompt", "the cat", "--node-threshold", "1.5"], "1.5"),
        (&["--prompt", "the cat", "--edge-threshold", "-0.1"], "-0.1"),
        (&["--prompt", "the cat", "--desired-logit-prob", "0"], "share of the probability is 0"),
        (&["--prompt", "the cat", "--max-n-logits", "0"], "number of logits is 0"),
        (&["--prompt", "the cat", "--max-feature-nodes", "0"], "number of feature nodes is 0"),
        (&["--prompt", "the cat", "--batch-size", "0"], "batch size is 0"),
        (&["--prompt", "the cat", "--qk", "9/0/1/1"], "there is no head 0 in layer 9"),
        (&["--prompt", "the cat", "--qk", "1/0/1/2"], "cannot look from position 1 to 2"),
        (&["--prompt", "the cat", "--direction", "nowhere.safetensors:x"], "nowhere.safetensors"),
        (&["--prompt", "the cat", "--slug", "a/b"], "a/b"),
        (&["--prompt", "the cat", "--difference", "#5", "#5"], "nothing to explain"),
        (&["--prompt", "the cat", "--tensors", arg(&out)], "where a part of the graph goes"),
    ] {
        let common = ["attribute", "--clt", arg(&clt), "--model", arg(&model), "--out", arg(&out)];
        let output = circuitlab(common.iter().chain(flags)).output().expect("starts");
        let text = stderr(&output);
        assert!(!output.status.success() && text.contains(says) && !text.contains("panicked"), "{flags:?}: {text}");
        assert!(text.trim().lines().count() <= 3, "{flags:?}: {text}");
    }
    let silent = folder.path().join("silent");
    fs::create_dir(&silent).expect("a folder");
    for entry in fs::read_dir(&clt).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), silent.join(entry.file_name())).expect("copies");
    }
    for layer in 0..4 {
        let path = silent.join(format!("W_enc_{layer}.safetensors"));
        let bytes = fs::read(&path).expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let raised: Vec<u8> = floats(&file, &format!("threshold_{layer}")).iter().flat_map(|_| 1e30_f32.to_le_bytes()).collect();
        let place = file.tensor(&format!("threshold_{layer}")).expect("thresholds").data().as_ptr() as usize - bytes.as_ptr() as usize;
        let mut bytes = bytes.clone();
        bytes[place..place + raised.len()].copy_from_slice(&raised);
        fs::File::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, &bytes)).expect("writes");
    }
    let output = circuitlab(["attribute", "--clt", arg(&silent), "--model", arg(&model), "--prompt", "the cat", "--out", arg(&out)]);
    let output = { output }.output().expect("starts");
    assert!(stderr(&output).contains("no feature is active"), "{}", stderr(&output));
    // Precision: less of it is warned of, and gives the same graph roughly.
    let common = ["attribute", "--clt", arg(&clt), "--model", arg(&model), "--prompt", "the cat sat", "--out", arg(&out), "--dtype"];
    let scores = ["f64", "f32", "bf16"].map(|dtype| json(&[&common[..], &[dtype]].concat())["replacement"].as_f64().expect("a score"));
    assert!((scores[0] - scores[1]).abs() < 1e-5 && (scores[0] - scores[2]).abs() < 0.05, "{scores:?}");
    let matrix = out.with_extension("safetensors");
    let output = circuitlab(["graph", "prune", arg(&matrix), "--out", arg(&matrix)]).output().expect("starts");
    assert!(stderr(&output).contains("is the graph itself"), "{}", stderr(&output));
    // What is there and is no graph is not written over.
    let taken = model.join("model.json");
    let output = circuitlab(["attribute", "--clt", arg(&clt), "--model", arg(&model), "--tokens", "1,87", "--out", arg(&taken)]);
    assert!(stderr(&{ output }.output().expect("starts")).contains("is no graph"));
    assert!(
        succeed(&["attribute", "--clt", arg(&clt), "--model", arg(&model), "--tokens", "1,87", "--out", arg(&out)]).contains("replacement")
    );
}
