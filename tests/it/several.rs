//! Several transcoders in one run, and runs in 16 bits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use circuitlab_tests::{arg, circuitlab, json, stderr, succeed};

use crate::pipeline::{self, SMALL};

const TABLES: &str = "
[[clt]]
name = \"few\"
sparsity.lambda = 6

[[clt]]
name = \"many\"
sparsity.lambda = 0.5
size.d_features = 96
";

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn tables(folder: &Path) -> PathBuf {
    let path = folder.join("two.toml");
    fs::write(&path, TABLES).expect("writes");
    path
}

/// The weights of a run, by file.
fn weights(run: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(run.join("final")).expect("a result").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        entries.map(|path| (path.file_name().expect("a name").display().to_string(), fs::read(&path).expect("a file"))).collect();
    files.sort();
    files
}

fn losses(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a record")["loss/total"].clone()).collect()
}

#[test]
fn several_transcoders_share_a_run_and_are_what_each_would_be_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let (both, config) = (folder.path().join("both"), tables(folder.path()));
    let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&both), "--config", arg(&config)];
    args.extend(SMALL);
    let dry = json(&[&args[..], &["--dry-run"]].concat());
    // Killed once, in the middle.
    let mut child = circuitlab(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let (begun, checkpoints) = (Instant::now(), both.join("many/checkpoints"));
    while fs::read_dir(&checkpoints).map_or(0, Iterator::count) == 0 && begun.elapsed() < Duration::from_mins(2) {
        assert!(child.try_wait().expect("a child").is_none_or(|status| status.success()));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("a child");
    let done = json(&["train", "--resume", "--cache", arg(&cache), "--out", arg(&both)]);
    assert_eq!(done["clts"].as_array().map(Vec::len), Some(2), "{done}");

    let mut parameters = 0;
    for (name, lambda, features) in [("few", "6", "64"), ("many", "0.5", "96")] {
        let (lambda, features) = (format!("sparsity.lambda={lambda}"), format!("size.d_features={features}"));
        let alone = folder.path().join(name);
        let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&alone)];
        args.extend(SMALL);
        args.extend(["--set", &lambda, "--set", &features]);
        parameters += json(&[&args[..], &["--dry-run"]].concat())["parameters"].as_u64().expect("a count");
        succeed(&args);
        assert_eq!(losses(&both.join(name)), losses(&alone), "{name}");
        assert!(weights(&both.join(name)) == weights(&alone), "{name}");
    }
    assert_eq!(dry["parameters"].as_u64(), Some(parameters), "a dry run sums them");
    let again = succeed(&["train", "--resume", "--cache", arg(&cache), "--out", arg(&both)]);
    assert!(again.contains("few: was finished already") && again.contains("many: was finished already"), "{again}");
    let (model, text) = (circuitlab_tests::model(), circuitlab_tests::text());
    succeed(&["eval", "--clt", arg(&both.join("few/final")), "--model", arg(&model), "--text", arg(&text), "--range", "0.998..1"]);

    let output = circuitlab(["train", "--cache", arg(&cache), "--out", arg(&folder.path().join("x")), "--set", "clt=[{name='a', seed=3}]"])
        .output()
        .expect("the program starts");
    assert!(stderr(&output).contains("`seed` is not a CLT's own"), "{}", stderr(&output));
}

#[test]
fn a_run_in_bf16_learns_and_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let run = |name: &str, extra: &[&str]| {
        let out = folder.path().join(name);
        let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&out)];
        args.extend(SMALL);
        args.extend(extra);
        succeed(&args);
        out
    };
    let short = run("bf16", &["--set", "compute.dtype=bf16"]);
    let full = run("f32", &[]);
    let last = |run: &Path| losses(run).last().and_then(serde_json::Value::as_f64).expect("a loss");
    assert!((last(&short) / last(&full) - 1.0).abs() < 0.02, "{} in bf16, {} in f32", last(&short), last(&full));
    // From the checkpoint before the end once more.
    let want = weights(&short);
    fs::remove_dir_all(short.join("final")).expect("removes");
    succeed(&["train", "--resume", "--cache", arg(&cache), "--out", arg(&short)]);
    assert!(weights(&short) == want, "masters are what a checkpoint holds");
}
