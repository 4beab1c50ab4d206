//! What users get wrong: one line that says what, where and what would be right; a failing exit code; nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use circuitlab_tests::{arg, binary, circuitlab, model, repository, stderr, text};

use crate::pipeline::{self, SMALL};

/// Runs the program, which must fail with one line that holds all these words.
fn fails(args: &[&str], words: &[&str]) {
    let output = circuitlab(args).output().expect("the program starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "circuitlab {}\n{said}", args.join(" "));
    check_words(&said, words);
}

fn check_words(said: &str, words: &[&str]) {
    let errors: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.starts_with("hint: ")).collect();
    assert_eq!(errors.len(), 1, "one line, not:\n{said}");
    assert!(errors[0].starts_with("error: "), "{said}");
    for word in words {
        assert!(errors[0].contains(word), "`{word}` is not in: {said}");
    }
}

fn write(path: &Path, content: &[u8]) {
    fs::File::create(path).and_then(|mut file| std::io::Write::write_all(&mut file, content)).expect("writes");
}

/// A copy of the bundled model that can be spoilt.
fn copy_of_model(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    fs::create_dir(&copy).expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(model().join(file), copy.join(file)).expect("copies");
    }
    copy
}

fn cache_args<'a>(model: &'a Path, text: &'a Path, out: &'a Path) -> Vec<&'a str> {
    vec!["cache", "--model", arg(model), "--text", arg(text), "--range", "0..0.02", "--out", arg(out)]
}

fn with<'a>(mut args: Vec<&'a str>, more: &[&'a str]) -> Vec<&'a str> {
    args.extend(more);
    args
}

#[test]
fn models_that_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("cache");
    let (spoilt, text) = (copy_of_model(folder.path()), text());
    let args = cache_args(&spoilt, &text, &out);
    let weights = spoilt.join("model.safetensors");
    let whole = fs::read(&weights).expect("weights");
    let config = fs::read_to_string(spoilt.join("config.json")).expect("a config");

    write(&weights, &whole[..whole.len() - 1000]);
    fails(&args, &["model.safetensors", "not a whole safetensors file"]);
    fs::remove_file(&weights).expect("removes");
    fails(&args, &["model.safetensors"]);
    write(&weights, &whole);
    write(&spoilt.join("config.json"), config.replace("\"model_type\": \"llama\"", "\"model_type\": \"bert\"").as_bytes());
    fails(&args, &["config.json", "bert", "gpt2, gpt_neox, llama"]);
    write(&spoilt.join("config.json"), config.replace("\"hidden_size\": 128", "\"hidden_size\": 64").as_bytes());
    fails(&args, &["64", "128"]);
    write(&spoilt.join("config.json"), b"{");
    fails(&args, &["config.json"]);
    write(&spoilt.join("config.json"), config.as_bytes());
    let other = repository().join("tests/fixtures/models/llama");
    fs::copy(other.join("config.json"), spoilt.join("config.json")).expect("copies");
    fs::copy(other.join("model.safetensors"), &weights).expect("copies");
    fails(&args, &["tokenizer", "does not belong", "1023", "131"]);
    fails(&cache_args(&folder.path().join("nowhere"), &text, &out), &["nowhere"]);
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn text_that_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, out) = (model(), folder.path().join("cache"));
    let bad = folder.path().join("bad.txt");
    write(&bad, b"good until here \xff\xfe no longer");
    fails(&cache_args(&model, &bad, &out), &["bad.txt", "UTF-8", "16"]);
    write(&bad, b"");
    fails(&cache_args(&model, &bad, &out), &["bad.txt", "no context of text"]);
    fails(&cache_args(&model, &folder.path().join("nowhere.txt"), &out), &["nowhere.txt"]);
    let odd = folder.path().join("text.docx");
    write(&odd, b"text");
    fails(&cache_args(&model, &odd, &out), &["text.docx", "txt"]);
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn settings_that_cannot_be_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text, out) = (model(), text(), folder.path().join("cache"));
    let args = cache_args(&model, &text, &out);
    fails(&with(args.clone(), &["--context", "257"]), &["257", "256"]);
    fails(&with(args.clone(), &["--codec", "int8+zst"]), &["unknown codec `zst`", "did you mean `zstd`", "int8, none, zstd"]);
    fails(&with(args.clone(), &["--codec", "zstd+int8"]), &["`int8` takes values", "first"]);
    fails(&with(args.clone(), &["--set", "chunk_row=5"]), &["chunk_row", "did you mean `chunk_rows`"]);
    fails(&with(args.clone(), &["--set", "input_hook=mlp.hook_on"]), &["mlp.hook_on", "did you mean `mlp.hook_in`"]);
    fails(&with(args.clone(), &["--set", "input_hook=attn.hook_pattern"]), &["attn.hook_pattern", "row of d_model"]);
    fails(&with(args.clone(), &["--set", "input_hook=hook_resid_post"]), &["does not come before", "hook_mlp_out"]);
    fails(&with(args.clone(), &["--job", "3/2"]), &["3/2"]);
    fails(&with(args.clone(), &["--device", "gpu"]), &["gpu", "cuda"]);
    fails(&with(args, &["--dtype", "f8"]), &["f8", "f32"]);
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn training_that_cannot_be_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let out = folder.path().join("run");
    let args = with(vec!["train", "--cache", arg(&cache), "--out", arg(&out)], &SMALL);
    fails(&with(args.clone(), &["--set", "sparsity.lamda=4"]), &["sparsity.lamda", "did you mean `lambda`"]);
    fails(&with(args.clone(), &["--set", "sparsity.lambda=high"]), &["sparsity.lambda"]);
    fails(&with(args.clone(), &["--activation", "jumprelo"]), &["unknown activation `jumprelo`", "did you mean `jumprelu`"]);
    fails(&with(args.clone(), &["--sink", "json"]), &["unknown metric-sink `json`", "did you mean `jsonl`", "csv, jsonl, tensorboard"]);
    fails(&with(args.clone(), &["--sink", "csv", "--sink", "csv"]), &["metrics.sinks", "each sink once, got `csv` twice"]);
    fails(&with(args.clone(), &["--strategy", "fsdq"]), &["unknown strategy `fsdq`", "single"]);
    fails(&with(args.clone(), &["--set", "activation.threshold=-1"]), &["threshold", "positive", "-1"]);
    let none = ["--activation", "topk", "--set", "activation.k=0"];
    fails(&with(args.clone(), &none), &["activation `topk`, key `k`: expected a whole number above 0, got 0"]);
    fails(&with(args.clone(), &["--set", "optimiser.learning_rate=0"]), &["never trains", "learning_rate"]);
    fails(&with(args.clone(), &["--set", "schedule.warmup_steps=500"]), &["never trains", "500"]);
    fails(&with(args.clone(), &["--set", "sparsity.ramp=2"]), &["never trains", "ramp"]);
    fails(&with(args.clone(), &["--set", "compute.device=cuda:99"]), &["cuda:99"]);
    fails(&with(args.clone(), &["--set", "transcoder=sae"]), &["unknown transcoder `sae`", "clt"]);
    let nowhere = folder.path().join("nowhere");
    fails(&["train", "--cache", arg(&nowhere), "--out", arg(&out)], &["nowhere"]);
    fails(&with(args.clone(), &["--set", "size.d_features=1000000000000"]), &["size.d_features", "numbers in memory"]);
    fails(&with(args.clone(), &["--set", "data.batch_rows=100000000000000"]), &["batch_rows"]);
    fails(&with(args.clone(), &["--set", "schedule.steps=9000000000000000000"]), &["more than can be counted"]);
    fails(&with(args.clone(), &["--set", "compute.threads=100000000"]), &["100000000", "threads", "1024"]);
    fails(&with(args.clone(), &["--set", "activation.threshold=1e300"]), &["initial weights", "`activation.threshold`"]);
    fails(&with(args.clone(), &["--dry-run", "--strategy", "zero3"]), &["unknown strategy `zero3`"]);
    assert!(!out.exists(), "nothing is left behind");

    fs::create_dir(&out).expect("a folder");
    write(&out.join("mine.txt"), b"precious");
    fails(&args, &["exists already"]);
    assert_eq!(fs::read_dir(&out).expect("the folder").count(), 1, "what is there stays as it is");
}

#[test]
fn things_that_do_not_belong_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let run = pipeline::train(folder.path(), &cache, &[]);
    let (clt, model, text) = (run.join("final"), model(), text());

    // The same model with other weights.
    let other = copy_of_model(folder.path());
    let mut weights = fs::read(other.join("model.safetensors")).expect("weights");
    let header = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    weights[8 + header + 1] ^= 1;
    write(&other.join("model.safetensors"), &weights);
    let eval = |clt: &Path, model: &Path| {
        let args = ["eval", "--clt", arg(clt), "--model", arg(model), "--text", arg(&text), "--range", "0.99..1"];
        args.map(str::to_owned)
    };
    let owned = eval(&clt, &other);
    fails(&owned.each_ref().map(String::as_str), &["fingerprint"]);
    let owned = eval(&cache, &model);
    fails(&owned.each_ref().map(String::as_str), &["config.yaml"]);
    fails(&with(cache_args(&other, &text, &cache), &["--resume"]), &["fingerprint"]);
    fails(&with(cache_args(&model, &text, &cache), &["--resume", "--set", "input_hook=hook_resid_mid"]), &["input_hook"]);
    fails(&cache_args(&model, &text, &cache), &["exists already"]);

    let hook = clt.join("config.yaml");
    let card = fs::read_to_string(&hook).expect("a card");
    write(&hook, card.replace("feature_input_hook: mlp.hook_in", "feature_input_hook: mlp.hook_inn").as_bytes());
    let owned = eval(&clt, &model);
    fails(&owned.each_ref().map(String::as_str), &["mlp.hook_inn", "did you mean `mlp.hook_in`"]);
    write(&hook, card.as_bytes());
    fs::remove_file(clt.join("W_dec_2.safetensors")).expect("removes");
    let owned = eval(&clt, &model);
    fails(&owned.each_ref().map(String::as_str), &["W_dec_2.safetensors"]);

    // A run goes on only on the cache that it was started on, whether it has a checkpoint or not.
    let another = tempfile::tempdir().expect("a folder");
    let others = pipeline::cache(another.path(), "0..0.03", &[]);
    fs::remove_dir_all(run.join("final")).expect("removes");
    fs::remove_dir_all(run.join("checkpoints")).expect("removes");
    fs::create_dir(run.join("checkpoints")).expect("a folder");
    fails(&["train", "--cache", arg(&others), "--out", arg(&run), "--resume"], &["another cache"]);
    fails(&["train", "--cache", arg(&cache), "--out", arg(&run), "--resume", "--set", "seed=5"], &["keeps its own config"]);
}

#[test]
fn damaged_chunks_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &["--set", "chunk_rows=1000"]);
    let part = cache.join("part-001-of-001");
    for name in ["chunk-000001.clab", "chunk-000004.clab"] {
        let mut bytes = fs::read(part.join(name)).expect("a chunk");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
        write(&part.join(name), &bytes);
    }
    let output = circuitlab(["cache", "verify", arg(&cache)]).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.contains("chunk-000001.clab") && listed.contains("chunk-000004.clab"), "{listed}");
    check_words(&stderr(&output), &["damaged in 2 places"]);
    let run = folder.path().join("run");
    let args = with(vec!["train", "--cache", arg(&cache), "--out", arg(&run)], &SMALL);
    fails(&args, &["chunk-00000", "checksum"]);
    assert!(!run.exists(), "a run that never took a step leaves nothing behind");
}

/// A limit on the size of files stands in for a full disk: the system refuses to write in the same way.
#[cfg(unix)]
fn fails_on_a_full_disk(args: &[&str], kilobytes: u32) -> String {
    let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
    let script = format!("trap '' XFSZ; ulimit -f {}; exec '{}' {}", kilobytes * 2, binary().display(), quoted.join(" "));
    let output = Command::new("sh").args(["-c", &script]).env_clear().env("OMP_WAIT_POLICY", "PASSIVE").output().expect("sh starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    check_words(&said, &["cannot write"]);
    said
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("cache");
    let (model, text) = (model(), text());
    let args = with(cache_args(&model, &text, &out), &["--set", "chunk_rows=4000"]);
    fails_on_a_full_disk(&args, 300);
    let parts = walk(folder.path()).into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "part"));
    assert_eq!(parts.count(), 0, "no half-written file");
    let resumed = with(args, &["--resume"]);
    circuitlab_tests::succeed(&resumed);

    let run = folder.path().join("run");
    let train = with(vec!["train", "--cache", arg(&out), "--out", arg(&run)], &SMALL);
    fails_on_a_full_disk(&train, 50);
    let left = walk(&run).into_iter().filter(|path| path.to_string_lossy().contains(".part"));
    assert_eq!(left.count(), 0, "no half-written checkpoint");
    circuitlab_tests::succeed(&["train", "--cache", arg(&out), "--out", arg(&run), "--resume"]);
    assert!(run.join("final/config.yaml").is_file());
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").filter_map(Result::ok) {
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[test]
fn transcoders_of_others_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let run = pipeline::train(folder.path(), &cache, &["--transcoder", "plt", "--activation", "relu"]);
    let (clt, model, text) = (run.join("final"), model(), text());
    let card = clt.join("config.yaml");
    let others =
        |extra: &str| format!("model_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n{extra}");
    let args = ["eval", "--clt", arg(&clt), "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1"];
    write(&card, others("activation: gelu\n").as_bytes());
    fails(&args, &["config.yaml", "unknown activation `gelu`", "jumprelu, relu, topk"]);
    write(&card, others("activation: topk\n").as_bytes());
    fails(&args, &["config.yaml", "`activation: topk` needs the number of active features", "`k: 32`"]);
    write(&card, others("").replace("transcoder_set", "crosscoder").as_bytes());
    fails(&args, &["config.yaml", "crosscoder", "cross_layer_transcoder, transcoder_set"]);
    write(&card, others("").as_bytes());
    circuitlab_tests::succeed(&args);
}

#[test]
fn the_demo_keeps_its_hands_off_other_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let mine = folder.path().join("shakespeare.txt");
    write(&mine, b"my own words");
    fails(&["demo", "--out", arg(folder.path())], &["shakespeare.txt", "not the demo's"]);
    assert_eq!(fs::read(&mine).expect("still there"), b"my own words");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[cfg(unix)]
#[test]
fn one_process_works_on_a_run_and_any_path_will_do() {
    use std::os::unix::ffi::OsStringExt;

    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    // A name that is no text: nothing may depend on its being one.
    let run = folder.path().join(std::ffi::OsString::from_vec(b"r\xff".to_vec()));
    let train = |extra: &[&str]| {
        let mut command = circuitlab(["train", "--cache", arg(&cache), "--resume"].iter().chain(extra));
        command.arg("--out").arg(&run).env("OMP_WAIT_POLICY", "PASSIVE");
        command
    };
    let mut first = train(&with(SMALL.to_vec(), &["--set", "schedule.steps=100000"])).spawn().expect("the program starts");
    while !run.join("config.toml").exists() {
        assert!(first.try_wait().expect("a child").is_none(), "it ended before it began");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let second = train(&[]).output().expect("the program starts");
    first.kill().and_then(|()| first.wait()).expect("SIGKILL");
    assert_eq!(second.status.code(), Some(1));
    check_words(&stderr(&second), &["another process is training in it"]);

    fs::remove_dir_all(&run).expect("removes");
    let done = train(&with(SMALL.to_vec(), &["--set", "schedule.steps=3"])).output().expect("the program starts");
    assert!(done.status.success(), "{}", stderr(&done));
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    for args in [&["train"][..], &["nonsense"], &["cache", "--model", "x"], &[]] {
        let output = circuitlab(args).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    assert!(circuitlab(["--version"]).output().expect("the program starts").status.success());
}
