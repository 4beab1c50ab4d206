//! Training on activations that are made as they are needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use circuitlab_tests::{arg, circuitlab, model, stderr, succeed, text};

/// A run of 24 small steps.
const SHORT: [&str; 14] = [
    "--set",
    "schedule.steps=24",
    "--set",
    "size.d_features=64",
    "--set",
    "data.batch_rows=128",
    "--set",
    "init.rows=512",
    "--set",
    "checkpoint.every_steps=6",
    "--set",
    "metrics.every_steps=2",
    "--set",
    "compute.threads=1",
];

/// All figures of a run but those of its speed.
fn figures(run: &Path) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(run.join("metrics.jsonl")).expect("figures");
    let figures = lines.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let record = record.as_object_mut().expect("a record");
        record.retain(|name, _| !name.contains("per_second") && !name.contains("wait"));
        serde_json::Value::Object(record.clone())
    });
    figures.collect()
}

fn weights(run: &Path) -> Vec<Vec<u8>> {
    let final_folder = run.join("final");
    (0..4).map(|layer| fs::read(final_folder.join(format!("W_dec_{layer}.safetensors"))).expect("weights")).collect()
}

fn train(out: &Path, of: &[&str]) {
    succeed(&[&["train", "--out", arg(out)], of, &SHORT].concat());
}

#[test]
fn a_run_without_a_cache_is_the_run_on_an_exact_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    let (cache, cached, live) = (place("cache"), place("cached"), place("live"));
    // One chunk, so that the scale of the rows is that of all of them in both.
    let (model, text) = (model(), text());
    let range = ["--range", "0..0.005"];
    succeed(&[&["cache", "--model", arg(&model), "--text", arg(&text), "--out", arg(&cache), "--codec", "none"], &range[..]].concat());
    train(&cached, &["--cache", arg(&cache)]);
    train(&live, &[&["--model", arg(&model), "--text", arg(&text)], &range[..]].concat());
    assert_eq!(figures(&live), figures(&cached));
    assert_eq!(weights(&live), weights(&cached));
}

#[test]
fn a_killed_run_without_a_cache_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    let (model, text) = (model(), text());
    // Several chunks, in windows of two.
    let of = [
        "--model",
        arg(&model),
        "--text",
        arg(&text),
        "--range",
        "0..0.02",
        "--set",
        "activations.settings.chunk_rows=600",
        "--set",
        "data.window_chunks=2",
    ];
    train(&whole, &of);
    let mut child = circuitlab([&["train", "--out", arg(&killed)], &of[..], &SHORT].concat())
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let checkpoint = |path: &PathBuf| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    for _ in 0..60_000 {
        if checkpoint(&killed.join("checkpoints")) || child.try_wait().expect("a child").is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("a child");
    succeed(&["train", "--out", arg(&killed), "--resume"]);
    assert_eq!(figures(&killed), figures(&whole));
    assert_eq!(weights(&killed), weights(&whole));
}

#[test]
fn rows_come_from_one_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("run");
    let says = |args: &[&str], code: i32, words: &str| {
        let output = circuitlab([&["train", "--out", arg(&out)], args].concat()).output().expect("runs");
        let said = stderr(&output);
        assert!(output.status.code() == Some(code) && said.contains(words), "{said}");
        assert!(!out.exists());
    };
    says(&[], 1, "nothing to train on; expected a cache, or a model and text");
    says(&["--cache", "c", "--model", "m", "--text", "t"], 2, "cannot be used with");
    says(&["--model", "nowhere", "--text", "t"], 1, "nowhere");
    let model = model();
    says(&["--model", arg(&model), "--text", "nowhere.txt"], 1, "nowhere.txt");
    says(&["--model", arg(&model), "--text", arg(&text()), "--set", "activations.settings.max_norm=5"], 1, "write a cache");
    says(&["--cache", "c", "--set", "activations.model=m", "--set", "activations.text=[]"], 1, "expected one of them");
}
