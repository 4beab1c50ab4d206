//! Other tools' files through the program: what it says, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, repository, stderr, succeed};

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/formats").join(name)
}

/// The one line that a command fails with.
fn refused(args: &[&str]) -> String {
    let output = circuitlab(args).output().expect("starts");
    let words = stderr(&output);
    assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{words}");
    words
}

#[test]
fn a_transcoder_goes_through_every_format() {
    let folder = tempfile::tempdir().expect("a folder");
    let ours = folder.path().join("ours");
    let imported = json(&["import", "--from", arg(&fixture("clt_forge_per_layer")), "--out", arg(&ours)]);
    assert_eq!(imported["format"], "clt-forge");
    assert_eq!((&imported["layers"], &imported["d_features"], &imported["skip"]), (&3.into(), &10.into(), &false.into()));
    let mut before = ours.clone();
    for format in ["circuitlab", "circuit-tracer", "gemma-scope", "gemma-scope-2", "clt-forge"] {
        let [out, back] = ["out", "back"].map(|name| folder.path().join(format!("{format}-{name}")));
        succeed(&["export", "--from", arg(&before), "--out", arg(&out), "--format", format]);
        let imported = json(&["import", "--from", arg(&out), "--out", arg(&back)]);
        assert_eq!(imported["format"], if format == "circuitlab" { "circuit-tracer" } else { format });
        for layer in 0..3 {
            let file = |folder: &Path| fs::read(folder.join(format!("layer_{layer}.safetensors"))).expect("a layer");
            assert!(file(&ours) == file(&back), "{format}: layer {layer} is another one");
        }
        before = back;
    }
}

#[test]
fn an_import_is_described_in_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let said = succeed(&["import", "--from", arg(&fixture("gemma_scope_2_clt")), "--out", arg(&out), "--dtype", "bf16"]);
    for words in [
        "cross_layer_transcoder of `gemma-scope-2`",
        "3 layers, 10 features each, jumprelu with a linear skip",
        "`mlp.hook_in` to `hook_mlp_out`",
    ] {
        assert!(said.contains(words), "{said}");
    }
    let again = refused(&["import", "--from", arg(&fixture("gemma_scope_2_clt")), "--out", arg(&out)]);
    assert!(again.contains("exists already; choose another --out"), "{again}");
}

#[test]
fn a_model_is_compared_and_remembered() {
    let folder = tempfile::tempdir().expect("a folder");
    let graphs = repository().join("tests/fixtures/graphs");
    let (from, out) = (graphs.join("llama_clt"), folder.path().join("out"));
    let gpt2 = graphs.join("gpt2");
    let words = refused(&["import", "--from", arg(&from), "--out", arg(&out), "--model", arg(&gpt2)]);
    assert!(words.contains("differ in layers") && !out.exists(), "{words}");
    let said = succeed(&["import", "--from", arg(&from), "--out", arg(&out), "--model", arg(&graphs.join("llama"))]);
    assert!(said.contains("it is of the model `llama`"), "{said}");
    let card = fs::read_to_string(out.join("config.yaml")).expect("a card");
    assert!(card.contains("model_fingerprint:") && card.contains("scan: oracle/llama-clt"), "{card}");
}

#[test]
fn what_is_wrong_is_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let nowhere = refused(&["import", "--from", arg(&folder.path().join("nowhere")), "--out", arg(&out)]);
    assert!(nowhere.contains("there is no such folder"), "{nowhere}");
    let other = refused(&["import", "--from", arg(&fixture("gemma_scope")), "--out", arg(&out), "--format", "clt-forge"]);
    assert!(other.contains("no `clt_weights.safetensors`"), "{other}");
    let topk = repository().join("tests/fixtures/graphs/llama_plt_topk");
    let held = refused(&["export", "--from", arg(&topk), "--out", arg(&out), "--format", "clt-forge"]);
    assert!(held.contains("its activation is `topk`, which `--format clt-forge` cannot hold"), "{held}");
    let output = circuitlab(["export", "--from", "a", "--out", "b", "--format", "gemma-scop"]).output().expect("starts");
    let words = stderr(&output);
    assert!(output.status.code() == Some(2) && words.contains("did you mean `gemma-scope`?"), "{words}");
    assert!(!out.exists());
}
