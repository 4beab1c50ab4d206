//! `intervene`, and `model generate` with features changed.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, repository, stderr, succeed};
use safetensors::tensor::{Dtype, SafeTensors};

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures/graphs")
}

/// The tokens of the fixtures' prompt, BOS first.
const TOKENS: &str = "1,87,203,120,123,125,117,128";

/// A fixture's model with the fixtures' tokenizer beside it.
pub(crate) fn model_with_tokenizer(folder: &Path, name: &str) -> PathBuf {
    let model = folder.join(name);
    fs::create_dir(&model).expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join(name).join(file), model.join(file)).expect("copies");
    }
    fs::copy(fixtures().join("tokenizer/tokenizer.json"), model.join("tokenizer.json")).expect("copies");
    model
}

/// Numbers of a tensor, whatever their type.
fn numbers(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f64>) {
    let view = file.tensor(name).unwrap_or_else(|_| panic!("no `{name}`"));
    let data = view.data();
    let numbers = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four")))).collect(),
        Dtype::F64 => data.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight"))).collect(),
        Dtype::U8 => data.iter().map(|byte| f64::from(*byte)).collect(),
        Dtype::I32 => data.chunks_exact(4).map(|bytes| f64::from(i32::from_le_bytes(bytes.try_into().expect("four")))).collect(),
        Dtype::I64 => data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("eight")) as f64).collect(),
        other => panic!("`{name}` is of type {other:?}"),
    };
    (view.shape().to_vec(), numbers)
}

/// Compares what a file of ours has with what circuit-tracer wrote, and tells how many tensors both have.
pub(crate) fn compare(ours: &Path, oracle: &Path) -> usize {
    let [ours, oracle] = [ours, oracle].map(|path| fs::read(path).expect("reads"));
    let [ours, oracle] = [&ours, &oracle].map(|bytes| SafeTensors::deserialize(bytes).expect("safetensors"));
    let known: Vec<&str> = oracle.names().into_iter().filter(|name| ours.names().contains(name)).collect();
    for name in &known {
        let ((got_shape, got), (want_shape, want)) = (numbers(&ours, name), numbers(&oracle, name));
        assert_eq!(got_shape, want_shape, "{name}");
        let tolerance = match *name {
            name if name.ends_with("logits") => 2e-4,
            name if name.ends_with("idx")
                || name.ends_with("indices")
                || name.ends_with("mask")
                || name.ends_with("features")
                || name.ends_with("ids") =>
            {
                0.0
            }
            _ => 5e-5,
        };
        let apart = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
        assert!(apart <= tolerance, "{name}: {apart:e} apart");
    }
    known.len()
}

#[test]
fn a_list_of_interventions_gives_what_circuit_tracer_gives() {
    let folder = tempfile::tempdir().expect("a folder");
    for (case, clt, tensors) in [
        ("llama_clt_full", "llama_clt", 4 + 17 + 3),
        ("gpt2_clt_full", "gpt2_clt", 4 + 17),
        ("llama_plt_relu_skip", "llama_plt_relu_skip", 4 + 17),
    ] {
        let place = fixtures().join("cases").join(case);
        let model = fixtures().join(if case.starts_with("gpt2") { "gpt2" } else { "llama" });
        let out = folder.path().join(format!("{case}.safetensors"));
        let (clt, meta) = (fixtures().join(clt), place.join("meta.json"));
        let args =
            ["intervene", "--clt", arg(&clt), "--model", arg(&model), "--tokens", TOKENS, "--file", arg(&meta), "--tensors", arg(&out)];
        let shown = json(&args);
        assert_eq!(shown["interventions"].as_array().map(Vec::len), Some(6), "{case}");
        assert_eq!(compare(&out, &place.join("oracle.safetensors")), tensors, "{case}");
        for intervention in shown["interventions"].as_array().expect("a list") {
            assert_eq!(intervention["features"].as_array().map(Vec::len), Some(10), "{case}: {}", intervention["name"]);
        }
    }
}

#[test]
fn flags_say_what_a_list_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, out) = (fixtures().join("llama_clt"), folder.path().join("out.safetensors"));
    let run = |flags: &[&str]| {
        let prompt =
            ["intervene", "--clt", arg(&clt), "--model", arg(&model), "--prompt", "the cat sat on the mat", "--tensors", arg(&out)];
        let shown = succeed(&[&prompt, flags].concat());
        let bytes = fs::read(&out).expect("reads");
        let logits = numbers(&SafeTensors::deserialize(&bytes).expect("safetensors"), "iv_intervention_logits").1;
        (logits, shown)
    };
    let oracle = fs::read(fixtures().join("cases/llama_clt_full/oracle.safetensors")).expect("a fixture");
    let oracle = SafeTensors::deserialize(&oracle).expect("safetensors");
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let is_recorded = |flags: &[&str], name: &str| {
        let far = apart(&run(flags).0, &numbers(&oracle, &format!("iv_{name}_logits")).1);
        assert!(far < 2e-4, "{flags:?}: {far:e} from `{name}`");
    };
    is_recorded(&["--ablate", "0/2/214"], "iterative_ablate");
    is_recorded(&["--scale-feature", "0/2:3/214=0"], "iterative_ablate");
    is_recorded(&["--supernode", "one=0/2/214", "--ablate-supernode", "one"], "iterative_ablate");
    is_recorded(&["--ablate", "0/2/214", "--no-freeze-attention"], "unfrozen_ablate");
    is_recorded(&["--scale-feature", "0/2/214=2", "--direct", "--pre-activations"], "direct_double");
    is_recorded(&["--set-feature", "2/2/46=3", "--constrained-layers", "2:4"], "partial_range");
    is_recorded(&["--set-feature", "1/2:/0=4"], "slice_inject_inactive");
    // It is inactive at all these positions, so that to add, to set and to steer are one.
    is_recorded(&["--add-feature", "1/2:/0=4"], "slice_inject_inactive");
    is_recorded(&["--steer", "1/2:/0=4"], "slice_inject_inactive");
    is_recorded(&["--set-feature", "1/2:/0=7", "--set-feature", "1/2:/0=4"], "slice_inject_inactive");
    let (steered, _) = run(&["--set-feature", "1/2:/0=4", "--steer", "1/2:/0=4"]);
    assert!(apart(&steered, &numbers(&oracle, "iv_slice_inject_inactive_logits").1) > 0.1, "what is steered comes on top");

    let shown = run(&["--ablate", "0/2/214"]).1;
    assert!(shown.starts_with("intervention: 1 change, attention held"), "{shown}");
    for word in ["next token", "\"ke\"", "layer/position/feature", "pre"] {
        assert_eq!(shown.contains(word), word != "pre", "{word}: {shown}");
    }
}

#[test]
fn a_text_goes_on_with_features_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, out) = (fixtures().join("llama_clt"), folder.path().join("out.safetensors"));
    let args =
        ["model", "generate", "--model", arg(&model), "--prompt", "the cat sat on the mat", "--temperature", "0", "--max-tokens", "6"];
    let changed = ["--clt", arg(&clt), "--set-feature", "1/2:/0=4", "--tensors", arg(&out)];
    assert_eq!(succeed(&args).trim_end(), "the cat sat on the matke an or3=E");
    assert_eq!(succeed(&[&args[..], &changed].concat()).trim_end(), "the cat sat on the matke anrte|\u{fffd}");
    assert_eq!(compare(&out, &fixtures().join("cases/llama_clt_full/oracle.safetensors")), 3);
    assert_eq!(succeed(&[&args[..], &["--clt", arg(&clt)]].concat()).trim_end(), "the cat sat on the matke an or3=E");
    // A feature that is changed on the prompt alone is changed through what the prompt leaves behind.
    let once = succeed(&[&args[..], &["--clt", arg(&clt), "--set-feature", "1/2:8/0=40"]].concat());
    assert_ne!(once.trim_end(), "the cat sat on the matke an or3=E");
}

/// Runs the program, which must fail with one line that holds these words.
pub(crate) fn fails(args: &[&str], words: &[&str]) {
    let output = circuitlab(args).output().expect("the program starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "circuitlab {}\n{said}", args.join(" "));
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.starts_with("hint: ")).collect();
    assert!(lines.len() == 1 && lines[0].starts_with("error: "), "one line, not:\n{said}");
    for word in words {
        assert!(lines[0].contains(word), "`{word}` is not in: {said}");
    }
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_with_tokenizer(folder.path(), "llama");
    let (clt, other) = (fixtures().join("llama_clt"), fixtures().join("gpt2_clt"));
    let with = |clt: &Path, prompt: &[&str], flags: &[&str], words: &[&str]| {
        fails(&[&["intervene", "--clt", arg(clt), "--model", arg(&model)], prompt, flags].concat(), words);
    };
    let fine: &[&str] = &["--prompt", "the cat"];
    let ablate: &[&str] = &["--ablate", "0/1/3"];
    for (flags, words) in [
        (&[][..], &["nothing is changed", "--set-feature"][..]),
        (&["--set-feature", "9/1/3=1"], &["no layer 9", "0 to 3"]),
        (&["--set-feature", "0/1/9999=1"], &["no feature 9999 in layer 0", "0 to "]),
        (&["--set-feature", "0/50/3=1"], &["position `50`", "0 to "]),
        (&["--set-feature", "0/2:1/3=1"], &["`2:1` is no position"]),
        (&["--set-feature", "0/1/3=nan"], &["--set-feature", "`nan` is not a number"]),
        (&["--set-feature", "0/1/3"], &["says no number"]),
        (&["--ablate", "0/1"], &["--ablate", "LAYER/POSITION/FEATURE"]),
        (&["--ablate-supernode", "x"], &["no supernode `x`"]),
        (&["--ablate", "0/1/3", "--constrained-layers", "2"], &["--constrained-layers", "such as `2:5`"]),
        (&["--ablate", "0/1/3", "--constrained-layers", "2:9"], &["2:9", "0:4"]),
        (&["--file", "/nowhere.json"], &["/nowhere.json"]),
        (&["--ablate", "0/1/3", "--supernodes", "/nowhere.json"], &["/nowhere.json"]),
    ] {
        with(&clt, fine, flags, words);
    }
    with(&clt, &["--prompt", ""], ablate, &["the prompt is empty"]);
    with(&clt, &["--tokens", "1,4000"], ablate, &["token 4000", "0 to 255"]);
    let long = vec!["5"; 200].join(",");
    with(&clt, &["--tokens", &long], ablate, &["200 tokens", "reads 128"]);
    with(&other, fine, ablate, &["differ in layers"]);
    with(&folder.path().join("nowhere"), fine, ablate, &["there is no such folder"]);
    let list = folder.path().join("list.json");
    fs::File::create(&list).and_then(|mut file| std::io::Write::write_all(&mut file, b"[{\"name\": 3}]")).expect("writes");
    with(&clt, fine, &["--file", arg(&list)], &["list.json", "number 0"]);
    fails(
        &["model", "generate", "--clt", arg(&clt), "--model", arg(&model), "--prompt", "the cat", "--set-feature", "0/50/3=1"],
        &["position `50`"],
    );
    let output =
        circuitlab(["model", "generate", "--model", arg(&model), "--prompt", "x", "--set-feature", "0/1/3=1"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(2), "changes need a transcoder");
}
