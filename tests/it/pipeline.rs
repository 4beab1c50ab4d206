//! The three commands one after the other, small.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::{arg, circuitlab, json, model, stderr, succeed, text};

/// Settings of a run of seconds.
pub(crate) const SMALL: [&str; 12] = [
    "--set",
    "optimiser.learning_rate=5e-3",
    "--set",
    "size.d_features=64",
    "--set",
    "schedule.steps=30",
    "--set",
    "data.batch_rows=256",
    "--set",
    "checkpoint.every_steps=10",
    "--set",
    "init.rows=512",
];

/// A cache of a twentieth of the bundled text.
pub(crate) fn cache(folder: &Path, range: &str, extra: &[&str]) -> PathBuf {
    let out = folder.join("cache");
    let (model, text) = (model(), text());
    let mut args = vec!["cache", "--model", arg(&model), "--text", arg(&text), "--range", range, "--out", arg(&out)];
    args.extend(extra);
    succeed(&args);
    out
}

/// A run of seconds on a cache.
pub(crate) fn train(folder: &Path, cache: &Path, extra: &[&str]) -> PathBuf {
    let out = folder.join("run");
    let mut args = vec!["train", "--cache", arg(cache), "--out", arg(&out)];
    args.extend(SMALL);
    args.extend(extra);
    succeed(&args);
    out
}

#[test]
fn cache_train_eval() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.05", &[]);
    let status = json(&["cache", "status", arg(&cache)]);
    assert_eq!(status["complete"], true);
    assert!(status["rows"].as_u64().expect("a count") > 20_000);
    assert!(succeed(&["cache", "verify", arg(&cache)]).contains("every chunk is whole"));

    let run = train(folder.path(), &cache, &[]);
    for file in
        ["config.toml", "metrics.jsonl", "log.txt", "plots/loss.svg", "plots/explained_variance.svg", "plots/l0.svg", "final/config.yaml"]
    {
        assert!(run.join(file).is_file(), "{file}");
    }
    let events = fs::read_dir(&run)
        .expect("the run")
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().contains("tfevents"));
    assert_eq!(events.count(), 1, "one TensorBoard file");
    let kept: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .expect("checkpoints")
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    let lines: Vec<serde_json::Value> = fs::read_to_string(run.join("metrics.jsonl"))
        .expect("metrics")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record"))
        .collect();
    assert_eq!(lines.iter().map(|line| line["step"].as_u64()).collect::<Vec<_>>(), [Some(10), Some(20), Some(30)]);
    let loss = |index: usize| lines[index]["loss/mse"].as_f64().expect("a number");
    assert!(loss(2) < 0.8 * loss(0), "the squared error falls: {} to {}", loss(0), loss(2));

    let (model, text) = (model(), text());
    for clt in [run.join("final"), run.join("checkpoints/step-00000020")] {
        let report = json(&["eval", "--clt", arg(&clt), "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1"]);
        assert_eq!(report["layers"].as_array().map(Vec::len), Some(4));
        let ev = report["explained_variance"].as_f64().expect("a number");
        assert!(ev > 0.2 && ev < 1.0, "{ev}");
        let faithfulness = &report["faithfulness"];
        let loss = |of: &serde_json::Value| of["cross_entropy"].as_f64().expect("a number");
        let own = faithfulness["model_cross_entropy"].as_f64().expect("a number");
        assert!((3.0..4.0).contains(&own), "the model's loss on held-out text is 3.5 nats, not {own}");
        let all = &faithfulness["all"];
        assert!(own < loss(&all["spliced"]) && loss(&all["spliced"]) < loss(&all["zero_ablation"]));
        assert!(all["spliced"]["kl"].as_f64().expect("a number") > 0.0);
    }
    let report = succeed(&["eval", "--clt", arg(&run.join("final")), "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1"]);
    assert!(report.contains("CE recovered") && report.contains("features firing from"), "{report}");
}

#[test]
fn per_layer_transcoders_go_the_same_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.03", &["--codec", "none"]);
    let run = train(folder.path(), &cache, &["--transcoder", "plt", "--activation", "relu"]);
    assert!(run.join("final/layer_3.safetensors").is_file());
    let card = fs::read_to_string(run.join("final/config.yaml")).expect("a card");
    assert!(card.contains("model_kind: transcoder_set"), "{card}");
    let (model, text) = (model(), text());
    let report = json(&["eval", "--clt", arg(&run.join("final")), "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1"]);
    assert!(report["explained_variance"].as_f64().expect("a number") > 0.1);
}

/// The steps of `metrics.jsonl`.
fn steps(run: &Path) -> Vec<u64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("a record")["step"].as_u64().expect("a step");
    text.lines().map(step).collect()
}

#[test]
fn sinks_are_chosen_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.02", &[]);
    let run = train(folder.path(), &cache, &["--sink", "jsonl", "--sink", "csv"]);
    let table = fs::read_to_string(run.join("metrics.csv")).expect("a table");
    let mut rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let header = rows.next().expect("a header");
    assert!(header[0] == "step" && header.contains(&"loss/total") && header.contains(&"l0/layer_3"), "{header:?}");
    assert_eq!(rows.map(|row| row[0].parse().expect("a step")).collect::<Vec<u64>>(), steps(&run));
    let events = fs::read_dir(&run).expect("the run").filter_map(Result::ok);
    assert!(events.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("tfevents")), "no TensorBoard file");
    let config = fs::read_to_string(run.join("config.toml")).expect("a config");
    assert!(config.contains("sinks = "), "the sinks belong to the run:\n{config}");
    assert!(run.join("plots/loss.svg").is_file());
}

#[test]
fn a_run_without_json_lines_has_no_plots_and_ends_well() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.02", &[]);
    let out = folder.path().join("run");
    let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&out), "--sink", "csv"];
    args.extend(SMALL);
    let output = circuitlab(&args).output().expect("the program starts");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("no plots are drawn").count(), 1, "{said}");
    assert!(out.join("metrics.csv").is_file() && !out.join("metrics.jsonl").exists() && !out.join("plots").exists());
    let again = succeed(&["train", "--cache", arg(&cache), "--out", arg(&out), "--resume"]);
    assert!(again.contains("was finished already: 30 steps") && !again.contains("NaN"), "{again}");
}

#[test]
fn int8_is_small_and_close_on_the_models_own_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.02", &["--codec", "none"]);
    let stats = json(&["cache", "stats", arg(&cache), "--codec", "int8", "--codec", "none", "--codec", "int8+zstd"]);
    let number = |codec: usize, name: &str| stats["codecs"][codec][name].as_f64().expect("a number");
    assert!(number(0, "max_nmse") < 1e-4, "{}", number(0, "max_nmse"));
    assert!(number(0, "worst_row_nmse") < 1e-4, "{}", number(0, "worst_row_nmse"));
    assert!(number(0, "ratio") >= 3.8 && number(2, "ratio") > number(0, "ratio"), "{}", number(0, "ratio"));
    assert!(number(0, "worst_row_nmse") > 0.0 && number(1, "worst_row_nmse") == 0.0);
    assert_eq!(stats["layers"].as_array().map(Vec::len), Some(8));
    assert!(succeed(&["cache", "stats", arg(&cache), "--rows", "1"]).contains("int4+zstd"));
}

#[test]
fn jobs_make_one_cache() {
    let folder = tempfile::tempdir().expect("a folder");
    cache(folder.path(), "0..0.03", &["--job", "2/2"]);
    let both = cache(folder.path(), "0..0.03", &["--job", "1/2"]);
    let one = tempfile::tempdir().expect("a folder");
    let whole = cache(one.path(), "0..0.03", &[]);
    let rows = |cache: &Path| json(&["cache", "status", arg(cache)])["rows"].as_u64().expect("a count");
    assert_eq!(rows(&both), rows(&whole));
    train(folder.path(), &both, &[]);
}

#[test]
fn a_run_may_be_begun_by_resuming_and_in_a_folder_that_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.02", &[]);
    let run = train(folder.path(), &cache, &["--resume", "--set", "schedule.steps=3"]);
    assert!(run.join("final/config.yaml").is_file());
    let config = fs::read_to_string(run.join("config.toml")).expect("a config");
    assert!(config.contains("threads = "), "the number of threads belongs to the run:\n{config}");

    let (empty, link) = (folder.path().join("empty"), folder.path().join("link"));
    fs::create_dir(&empty).expect("a folder");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&empty, &link).expect("a link");
    let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&link)];
    args.extend(SMALL);
    args.extend(["--set", "schedule.steps=3"]);
    succeed(&args);
    assert!(empty.join("final/config.yaml").is_file());
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), "0..0.02", &[]);
    let out = folder.path().join("run");
    let plan = json(&["train", "--cache", arg(&cache), "--out", arg(&out), "--dry-run", "--set", "size.expansion=2"]);
    // Per layer: 256 x 128 encoders, biases and thresholds, decoders to 4, 3, 2 and 1 layers, 128 output biases.
    assert_eq!(plan["parameters"], 4 * (256 * 128 + 256 + 256 + 128) + 10 * 256 * 128);
    assert!(!out.exists());
}
