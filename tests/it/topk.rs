//! Runs whose activation says how many features fire.

#![allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]

use std::fs;

use circuitlab_tests::{arg, json, model, text};
use serde_json::Value;

use crate::pipeline;

/// Active features of each layer on held-out text.
fn l0(clt: &std::path::Path) -> Vec<f64> {
    let (model, text) = (model(), text());
    let report = json(&["eval", "--clt", arg(clt), "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1"]);
    let layers = report["layers"].as_array().expect("a list");
    layers.iter().map(|layer| layer["l0"].as_f64().expect("a number")).collect()
}

#[test]
fn at_most_k_features_of_a_row_fire() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &["--codec", "none"]);
    let run = pipeline::train(folder.path(), &cache, &["--transcoder", "plt", "--activation", "topk", "--set", "activation.k=8"]);
    let last = run.join("final");
    let own = l0(&last);
    assert!(own.len() == 4 && own.iter().all(|l0| *l0 > 1.0 && *l0 <= 8.0), "{own:?}");

    // The same files as circuit-tracer sees them: it keeps the 8 largest of a row, negative ones too.
    let card = fs::read_to_string(last.join("config.yaml")).expect("a card");
    assert!(card.contains("\nactivation: topk\n") && card.contains("\nk: 8\n"), "{card}");
    let foreign: Vec<&str> = card.lines().take_while(|line| !line.starts_with("circuitlab:")).collect();
    fs::write(last.join("config.yaml"), foreign.join("\n") + "\nscan: somebody/plt\n").expect("writes");
    assert_eq!(l0(&last), [8.0; 4]);
}

#[test]
fn batchtopk_is_saved_as_the_jumprelu_that_it_became() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &["--codec", "none"]);
    let settings = ["--activation", "batchtopk", "--set", "activation.k=8", "--set", "activation.decay=0.8", "--set", "sparsity.lambda=0"];
    let run = pipeline::train(folder.path(), &cache, &settings);
    let lines = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let last: Value = lines.lines().last().and_then(|line| serde_json::from_str(line).ok()).expect("a record");
    for layer in 0..4 {
        let l0 = last[format!("l0/layer_{layer}")].as_f64().expect("a number");
        assert!((l0 - 8.0).abs() < 1e-6, "in training the batch has exactly 8 of a row, not {l0}");
    }
    let card = fs::read_to_string(run.join("final/config.yaml")).expect("a card");
    assert!(card.contains("jumprelu") && card.contains("direct") && card.contains("trained_with"), "{card}");
    // The threshold is a mean over the last five batches or so, while the weights still move at the high rate of so short a run, and
    // the text is another: half and double of k is where a threshold of the wrong layer or of the first batch is outside.
    let l0 = l0(&run.join("final"));
    assert!(l0.len() == 4 && l0.iter().all(|l0| (4.0..16.0).contains(l0)), "{l0:?}");
}
