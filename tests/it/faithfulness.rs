//! `eval --faithfulness`.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, repository, stderr, succeed, text};

use crate::intervene::{fails, model_with_tokenizer};

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/graphs").join(name)
}

fn prompts(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("prompts.txt");
    fs::File::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())).expect("writes");
    path
}

#[test]
fn prompts_are_scored_as_their_graphs_and_perturbed_as_they_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let file = prompts(folder.path(), "the cat sat on the mat\n\nthe mat sat\n");
    let (clt, plt) = (fixture("llama_clt"), fixture("llama_plt_topk"));
    let args = ["eval", "--clt", arg(&clt), "--clt", arg(&plt), "--model", arg(&model), "--faithfulness", arg(&file)];
    let report = json(&args);
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("no number: {value}"));
    let transcoders = report["transcoders"].as_array().expect("a list");
    assert_eq!(transcoders.len(), 2);
    for one in transcoders {
        assert_eq!(one["prompts"].as_array().map(Vec::len), Some(2));
        // What is direct is what the graph's edges are, for a skip of the ReLU's kink is no part of it.
        for direct in [&one["direct"]["features"], &one["direct"]["logits"]] {
            assert!((number(&direct["correlation"]) - 1.0).abs() < 1e-6 && (number(&direct["slope"]) - 1.0).abs() < 1e-4, "{direct}");
            assert!(number(&direct["relative_error"]) < 1e-4 && number(&direct["pairs"]) > 50.0, "{direct}");
        }
        assert_eq!(one["direct"]["by_distance"].as_array().map(Vec::len), Some(3));
        let held = &one["attention_held"];
        assert!(number(&held["features"]["relative_error"]) > 1e-3, "MLPs of random weights answer as no graph says: {held}");
        assert_eq!(held["features"]["pairs"], one["direct"]["features"]["pairs"]);
        let mean = number(&one["mean"]["replacement"]);
        let of = |key: &str| one["prompts"].as_array().expect("a list").iter().map(|prompt| number(&prompt[key])).collect::<Vec<f64>>();
        assert!((mean - of("replacement").iter().sum::<f64>() / 2.0).abs() < 1e-9);
        assert!(of("kl").iter().all(|kl| *kl > 0.0) && of("agreement").iter().all(|share| (0.0..=1.0).contains(share)));
    }
    // circuit-tracer's scores of the same graph.
    let meta = fs::read_to_string(fixture("cases/llama_clt_full/meta.json")).expect("a fixture");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    let first = &transcoders[0]["prompts"][0];
    for (ours, theirs) in [("replacement", "replacement_score"), ("completeness", "completeness_score")] {
        assert!((number(&first[ours]) - number(&meta[theirs])).abs() < 1e-4, "{ours}");
    }
    assert_eq!(first["active_features"], meta["n_active"]);

    assert_eq!(json(&args), report, "twice the same");
    let other = json(&[&args[..], &["--seed", "1", "--perturbed-features", "3"]].concat());
    assert_eq!(other["transcoders"][0]["prompts"][0]["perturbed_features"], 3);
    let shown = succeed(&args);
    for words in ["#1 is `", "(transcoder-set)", "\"<s>the cat sat on the mat\"", "mean", "attention held: correlation", "logits"] {
        assert!(shown.contains(words), "`{words}` is not in:\n{shown}");
    }
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, other) = (fixture("llama_clt"), fixture("gpt2_clt"));
    let with = |clt: &Path, file: &Path, words: &[&str]| {
        fails(&["eval", "--clt", arg(clt), "--model", arg(&model), "--faithfulness", arg(file)], words);
    };
    with(&clt, &folder.path().join("nowhere"), &["cannot read", "nowhere"]);
    with(&clt, &prompts(folder.path(), "\n  \n"), &["prompts.txt", "holds no prompt"]);
    with(&clt, &prompts(folder.path(), &format!("the cat\n{}", "the cat ".repeat(100))), &["prompts.txt`: line 2", "reads 128"]);
    let file = prompts(folder.path(), "the cat sat");
    with(&other, &file, &["differ in layers"]);
    fails(
        &["eval", "--clt", arg(&clt), "--clt", arg(&other), "--model", arg(&model), "--text", arg(&text())],
        &["several `--clt`", "--faithfulness"],
    );
    for args in [
        &["eval", "--clt", arg(&clt), "--model", arg(&model)][..],
        &["eval", "--clt", arg(&clt), "--model", arg(&model), "--faithfulness", arg(&file), "--text", arg(&file)],
        &["eval", "--clt", arg(&clt), "--model", arg(&model), "--text", arg(&file), "--seed", "3"],
    ] {
        let output = circuitlab(args).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}
