//! `model`, `plugins` and `bench`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use circuitlab_tests::{arg, circuitlab, json, model, repository, stderr, succeed};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    assert_eq!(view.dtype(), Dtype::F32);
    view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
}

#[test]
fn activations_are_those_of_the_reference() {
    let folder = tempfile::tempdir().expect("a folder");
    let fixtures = fs::read_dir(repository().join("tests/fixtures/models")).expect("a folder").map(|entry| entry.expect("an entry").path());
    let fixtures: Vec<_> = fixtures.filter(|path| path.is_dir()).collect();
    assert!(fixtures.len() >= 18, "{fixtures:?}");
    for fixture in fixtures {
        let name = fixture.file_name().expect("a name").to_string_lossy().into_owned();
        let expected = fixture.join("expected.safetensors");
        let out = folder.path().join(format!("{name}.safetensors"));
        let gate: &[&str] = if name.ends_with("-gate") { &["--attention-gate"] } else { &[] };
        succeed(&[&["model", "activations", "--model", arg(&fixture), "--tokens", arg(&expected), "--out", arg(&out)], gate].concat());
        let (want, got) = (fs::read(&expected).expect("a fixture"), fs::read(&out).expect("the result"));
        let (want, got) = (SafeTensors::deserialize(&want).expect("safetensors"), SafeTensors::deserialize(&got).expect("safetensors"));
        let mut names = (want.names(), got.names());
        names.0.sort_unstable();
        names.1.sort_unstable();
        assert_eq!(names.0, names.1, "{name}: the same keys");
        for key in names.0.into_iter().filter(|key| *key != "tokens") {
            let (want, got) = (want.tensor(key).expect("listed"), got.tensor(key).expect("listed"));
            assert_eq!(want.shape(), got.shape(), "{name}, {key}");
            let apart = floats(&want).iter().zip(floats(&got)).map(|(want, got)| (want - got).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{name}, {key}: {apart} apart");
        }
    }
}

#[test]
fn a_model_is_described() {
    let shown = json(&["model", "show", arg(&model())]);
    assert_eq!(shown["model"]["family"], "llama");
    // 1024 x 128 embeddings, and per layer 128 x (128 + 64 + 64 + 128) attention, 3 x 128 x 352 MLP, 2 x 128 gains; one more gain.
    assert_eq!(shown["model"]["parameters"], 1024 * 128 + 4 * (128 * 384 + 3 * 128 * 352 + 256) + 128);
    let hooks: Vec<&str> = shown["hook_points"].as_array().expect("a list").iter().filter_map(|hook| hook.as_str()).collect();
    assert!(hooks.contains(&"blocks.3.mlp.hook_in") && hooks.contains(&"blocks.0.hook_mlp_out"), "{hooks:?}");
    assert!(succeed(&["model", "show", arg(&model())]).contains("blocks.{0..3}.mlp.hook_in"));
}

#[test]
fn plugins_are_listed_by_kind() {
    let listed = json(&["plugins", "list"]);
    let mut kinds: HashMap<&str, Vec<&str>> = HashMap::new();
    for plugin in listed.as_array().expect("a list") {
        kinds.entry(plugin["kind"].as_str().expect("text")).or_default().push(plugin["name"].as_str().expect("text"));
    }
    assert_eq!(kinds["codec"], ["bf16", "int4", "int8", "none", "zstd"]);
    let families = ["gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"];
    assert_eq!(kinds["model"], families);
    assert_eq!(kinds["activation"], ["batchtopk", "jumprelu", "relu", "topk"]);
    assert_eq!(kinds["transcoder"], ["clt", "plt"]);
    assert_eq!(kinds["strategy"], ["ddp", "feature-sharded", "fsdp", "hybrid", "single"]);
    assert_eq!(kinds["text-source"], ["jsonl", "parquet", "txt"]);
}

/// The first recorded step, in the form that benchmarks read.
fn bench_input(path: &Path) -> Vec<f64> {
    let whole = fs::read(repository().join("tests/fixtures/training/clt_golden.safetensors")).expect("a fixture");
    let golden = SafeTensors::deserialize(&whole).expect("safetensors");
    let doubles = |view: &TensorView<'_>| {
        view.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes"))).collect::<Vec<_>>()
    };
    let steps = doubles(&golden.tensor("steps").expect("the table"));
    // The fourth step's weights: at the first, lambda is still 0.
    let scalars = [("lambda", 1e-2), ("mu", steps[6]), ("bandwidth", 1.0), ("lr", 1e-3)];
    let single = |values: &[f64]| values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect::<Vec<u8>>();
    let mut blobs: Vec<(String, Vec<usize>, Vec<u8>)> =
        scalars.iter().map(|(name, value)| ((*name).to_owned(), vec![], single(&[*value]))).collect();
    for name in golden.names().into_iter().filter(|name| name.starts_with("init.") || *name == "x.0" || *name == "y.0") {
        let view = golden.tensor(name).expect("listed");
        blobs.push((name.to_owned(), view.shape().to_vec(), single(&doubles(&view))));
    }
    let views = blobs.iter().map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).expect("fits")));
    fs::File::create(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &safetensors::serialize(views, None).expect("lays out")))
        .expect("writes");
    steps
}

#[test]
fn the_step_benchmark_prints_what_the_reference_prints() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("in.safetensors");
    let steps = bench_input(&input);
    let printed = succeed(&["bench", "step", arg(&input), "--steps", "3", "--dense"]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 5, "{printed}");
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(
        [words[0], words[1], words[2], words[4], words[6], words[8], words[10]],
        ["step", "0", "mse", "sparse", "preact", "l0", "seconds"]
    );
    let mse: f64 = words[3].parse().expect("a number");
    assert!((mse - steps[0]).abs() < 1e-5 * steps[0], "{mse} is not the recorded {}", steps[0]);
    assert!(lines[4].starts_with("median_seconds "), "{printed}");
}

#[test]
fn steps_of_several_plugins_are_compared_in_one_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("in.safetensors");
    let steps = bench_input(&input);
    let wide = "{type = \"jumprelu\", bandwidth = 2.0}";
    let whole =
        json(&["bench", "step", arg(&input), "--steps", "2", "--activation", "jumprelu", "--activation", wide, "--activation", "relu"]);
    let cases = whole["cases"].as_array().expect("a list");
    let names: Vec<_> = cases.iter().map(|case| (case["transcoder"].as_str(), case["activation"].as_str())).collect();
    assert_eq!(names, [(Some("clt"), Some("jumprelu")), (Some("clt"), Some("jumprelu bandwidth=2.0")), (Some("clt"), Some("relu"))]);
    assert!((cases[0]["to_first"].as_f64().expect("a number") - 1.0).abs() < 1e-12);
    // The first step sees the recorded parameters; how wide the kernel is shows only after it.
    for case in &cases[..2] {
        assert!((case["steps"][0]["mse"].as_f64().expect("a number") - steps[0]).abs() < 1e-5 * steps[0]);
    }
    assert_ne!(cases[0]["steps"][2]["mse"], cases[1]["steps"][2]["mse"]);
    assert!(cases.iter().all(|case| case["steps"].as_array().map(Vec::len) == Some(3)));
}

#[test]
fn codecs_are_compared_in_one_run() {
    let half = "{type = \"int8\", block = 32}";
    let whole = json(&["bench", "codec", "none", "bf16", half, "int4+zstd", "--rows", "16", "--width", "64", "--rounds", "3"]);
    let codecs = whole["codecs"].as_array().expect("a list");
    let bytes: Vec<f64> = codecs.iter().map(|codec| codec["bytes_per_value"].as_f64().expect("a number")).collect();
    assert_eq!(bytes[..3], [4.0, 2.0, 1.0625]);
    assert_eq!(codecs[2]["settings"][0]["block"], 32);
    for codec in codecs {
        assert!(codec["encode"]["gb_per_s"].as_f64() > Some(0.0) && codec["decode"]["to_first"].as_f64() > Some(0.0), "{codec}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let input = folder.path().join("in.safetensors");
    bench_input(&input);
    let whole = json(&["bench", "codec", "int8", "--input", arg(&input), "--tensor", "x.0", "--rows", "7", "--rounds", "1"]);
    assert_eq!(whole["rows"], 7);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn a_text_is_continued() {
    let model = model();
    let generate = |rest: &[&str]| json(&[&["model", "generate", "--model", arg(&model), "--max-tokens", "12"], rest].concat());
    let greedy = generate(&["--prompt", "I pray you, good my", "--temperature", "0"]);
    assert!(greedy["text"].as_str().expect("text").starts_with(" lord"), "{greedy}");
    assert_eq!(greedy["prompt"][0], 0, "the model's BOS");
    // Each token is the likeliest after all before it, by a pass that keeps nothing.
    let ids: Vec<i64> = [&greedy["prompt"], &greedy["tokens"]]
        .iter()
        .flat_map(|ids| ids.as_array().expect("ids"))
        .map(|id| id.as_i64().expect("an id"))
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let (tokens, out) = (folder.path().join("tokens.safetensors"), folder.path().join("out.safetensors"));
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::I64, vec![1, ids.len()], &bytes).expect("fits");
    fs::write(&tokens, safetensors::serialize([("tokens", view)], None).expect("lays out")).expect("writes");
    succeed(&["model", "activations", "--model", arg(&model), "--tokens", arg(&tokens), "--out", arg(&out)]);
    let out = fs::read(&out).expect("the result");
    let logits = floats(&SafeTensors::deserialize(&out).expect("safetensors").tensor("logits").expect("logits"));
    let first = greedy["prompt"].as_array().expect("ids").len();
    for place in first..ids.len() {
        let row = &logits[(place - 1) * 1024..place * 1024];
        let best = (0..1024).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("some");
        assert_eq!(i64::try_from(best), Ok(ids[place]), "place {place}");
    }

    // A chat model's config names several tokens that end a text.
    let chat = folder.path().join("chat");
    fs::create_dir(&chat).expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(model.join(file), chat.join(file)).expect("copies");
    }
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(chat.join("config.json")).expect("a config")).expect("JSON");
    config["eos_token_id"] = serde_json::json!([1, ids[first + 1]]);
    fs::write(chat.join("config.json"), config.to_string()).expect("writes");
    let ended = json(&["model", "generate", "--model", arg(&chat), "--prompt", "I pray you, good my", "--temperature", "0"]);
    assert_eq!(ended["tokens"], serde_json::json!(ids[first..first + 2]));

    let full = vec!["5"; 256].join(",");
    let drawn = |seed: &str| generate(&["--tokens", "0,5,9", "--top-k", "40", "--top-p", "0.95", "--seed", seed])["tokens"].clone();
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_eq!(generate(&["--tokens", "0,5,9"])["prompt"], serde_json::json!([0, 5, 9]));
    for (wrong, says) in [
        (["--temperature", "nan"], "the temperature is NaN"),
        (["--top-k", "0"], "top-k is 0"),
        (["--top-p", "1.5"], "top-p is 1.5"),
        (["--tokens", &full], "there is no room for more"),
        (["--tokens", "4000"], "token 4000 is outside of the vocabulary"),
    ] {
        let prompt: &[&str] = if wrong[0] == "--tokens" { &[] } else { &["--tokens", "0"] };
        let output = circuitlab([&["model", "generate", "--model", arg(&model)], prompt, &wrong].concat()).output().expect("runs");
        let said = stderr(&output);
        assert!(output.status.code() == Some(1) && said.contains(says), "{said}");
    }
}
