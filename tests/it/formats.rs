//! Other tools' files through the program: what it says, and what it refuses.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, model, repository, stderr, succeed, text};
use safetensors::tensor::SafeTensors;

use crate::pipeline;

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

#[test]
fn a_trained_skip_is_evaluated_and_goes_through_gemma_scope_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let run = pipeline::train(folder.path(), &cache, &["--set", "transcoder.skip=true"]);
    let result = run.join("final");
    let [out, back] = ["out", "back"].map(|name| folder.path().join(name));
    succeed(&["export", "--from", arg(&run), "--out", arg(&out), "--format", "gemma-scope-2"]);
    let imported = json(&["import", "--from", arg(&out), "--out", arg(&back), "--model", arg(&model())]);
    assert_eq!((&imported["skip"], &imported["activation"]["type"]), (&true.into(), &"jumprelu".into()));
    for entry in fs::read_dir(&result).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.extension().is_some_and(|extension| extension == "safetensors") {
            let name = entry.file_name().expect("a name");
            let [ours, theirs] = [&entry, &back.join(name)].map(|path| fs::read(path).expect("reads"));
            assert!(ours == theirs, "{} is another one", name.display());
        }
    }
    let bytes = fs::read(result.join("W_enc_0.safetensors")).expect("reads");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let skip = file.tensor("W_skip_0").expect("a skip");
    assert!(skip.data().iter().any(|byte| *byte != 0), "it was trained");
    let text = text();
    let evaluate = |clt: &Path| {
        let (model, clt) = (model(), arg(clt));
        let on = ["--text", arg(&text), "--range", "0.98..1", "--context", "64", "--max-contexts", "2"];
        let report = json(&[&["eval", "--clt", clt, "--model", arg(&model)][..], &on].concat());
        ["explained_variance", "l0"].map(|name| report[name].as_f64().expect("a number"))
    };
    // Thresholds of the one go through their logarithms.
    for (ours, theirs) in evaluate(&result).into_iter().zip(evaluate(&back)) {
        assert!((ours - theirs).abs() < 1e-3 * ours.abs(), "{ours} and {theirs}");
    }
    let circuit_tracer =
        refused(&["export", "--from", arg(&run), "--out", arg(&folder.path().join("other")), "--format", "circuit-tracer"]);
    assert!(circuit_tracer.contains("it has a linear skip, and features write to several layers"), "{circuit_tracer}");
}
