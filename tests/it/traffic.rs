//! What ranks send to each other is what the plan says.

use std::fs;
use std::path::Path;

use circuitlab_tests::{arg, json, succeed};
use serde_json::Value;

use crate::pipeline::{self, SMALL};

/// The strategies with the ranks that they are tried with, and rows that make three micro-batches of a rank's.
const STRATEGIES: [(&[&str], &str, u32); 8] = [
    (&["--strategy", "ddp"], "2", 43),
    (&["--strategy", "ddp"], "4", 22),
    (&["--strategy", "feature-sharded"], "2", 85),
    (&["--strategy", "feature-sharded"], "4", 85),
    (&["--strategy", "hybrid", "--set", "strategy.feature=2"], "4", 43),
    (&["--strategy", "fsdp"], "2", 43),
    (&["--strategy", "fsdp"], "4", 22),
    (&["--strategy", "hybrid", "--set", "strategy.feature=2", "--set", "strategy.shard=true"], "4", 43),
];

/// What the records of a run say that a step sent.
fn counted(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let record = |line: &str| serde_json::from_str::<Value>(line).expect("a record")["communication/bytes_per_step"].as_f64();
    text.lines().map(|line| record(line).expect("a figure")).collect()
}

/// What the plan says.
fn planned(plan: &Value) -> f64 {
    let exchanges = plan["communication"].as_array().expect("a list");
    exchanges.iter().map(|exchange| exchange["bytes"].as_f64().expect("a number")).sum()
}

/// Rows and features do not divide by the ranks; there is a record and a checkpoint at every step, which do not count.
fn a_step_sends_what_is_planned(settings: &[&str], in_parts: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    for (number, (strategy, ranks, micro)) in STRATEGIES.into_iter().enumerate() {
        let run = folder.path().join(format!("run-{number}"));
        let micro = format!("data.micro_batch_rows={micro}");
        let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&run), "--set", "compute.threads=1", "--set", "init.rows=512"];
        args.extend(["--set", "size.d_features=63", "--set", "data.batch_rows=254", "--set", "schedule.steps=3"]);
        args.extend(["--set", "metrics.every_steps=1", "--set", "checkpoint.every_steps=1"]);
        args.extend(settings.iter().chain(strategy));
        if in_parts {
            args.extend(["--set", &micro]);
        }
        let plan = json(&[&args[..], &["--dry-run", "--ranks", ranks]].concat());
        succeed(&[&["launch", "--ranks", ranks, "--"], &args[..]].concat());
        let want = planned(&plan);
        assert!(want > 1e5, "{strategy:?}: {plan}");
        assert_eq!(counted(&run), [want; 3], "{strategy:?} with {ranks} ranks: {}", plan["communication"]);
    }
}

#[test]
fn a_step_sends_what_is_planned_in_32_bits() {
    a_step_sends_what_is_planned(&[], false);
}

#[test]
fn a_step_sends_what_is_planned_in_64_bits() {
    a_step_sends_what_is_planned(&["--set", "compute.dtype=f64"], false);
}

#[test]
fn micro_batches_send_what_is_planned_in_32_bits() {
    a_step_sends_what_is_planned(&[], true);
}

#[test]
fn micro_batches_send_what_is_planned_in_64_bits() {
    a_step_sends_what_is_planned(&["--set", "compute.dtype=f64"], true);
}

/// Terms of the loss are of other bits where libtorch makes them.
#[test]
fn dense_steps_and_those_of_libtorch_send_what_is_planned() {
    a_step_sends_what_is_planned(&["--set", "transcoder.step=dense"], true);
    a_step_sends_what_is_planned(&["--set", "transcoder.step=operations"], false);
}

#[test]
fn rows_that_are_read_in_parts_are_counted() {
    a_step_sends_what_is_planned(&["--set", "data.sharing=parts"], true);
}

/// Under each way of sharing rows, the same weights to the bit; windows are smaller than the cache.
#[test]
fn ranks_train_on_the_same_rows_whoever_reads_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.05", &["--set", "chunk_rows=1000"]);
    for (ranks, strategy) in
        [("2", &["--strategy", "feature-sharded"][..]), ("4", &["--strategy", "hybrid", "--set", "strategy.feature=2"])]
    {
        let [each, parts] = ["each", "parts"].map(|sharing| {
            let run = folder.path().join(format!("{sharing}-{ranks}"));
            let setting = format!("data.sharing={sharing}");
            let mut args = vec!["launch", "--ranks", ranks, "--", "train", "--cache", arg(&cache), "--out", arg(&run), "--set", &setting];
            args.extend(SMALL.into_iter().chain(["--set", "data.batch_rows=255", "--set", "data.window_chunks=3"]));
            args.extend(strategy);
            succeed(&args);
            fs::read(run.join("final/W_enc_1.safetensors")).expect("weights")
        });
        assert!(each == parts, "{ranks} ranks");
    }
}

#[test]
fn two_transcoders_send_what_is_planned() {
    let clts = "clt=[{name='a'}, {name='b', transcoder='plt', size={d_features=31}}]";
    let folder = tempfile::tempdir().expect("a folder");
    let (cache, run) = (pipeline::cache(folder.path(), "0..0.02", &[]), folder.path().join("run"));
    let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&run), "--set", "compute.threads=1", "--set", "init.rows=512"];
    args.extend(["--set", "schedule.steps=3", "--set", "metrics.every_steps=3", "--strategy", "ddp", "--set", clts]);
    let plan = json(&[&args[..], &["--dry-run", "--ranks", "2"]].concat());
    succeed(&[&["launch", "--ranks", "2", "--"], &args[..]].concat());
    for name in ["a", "b"] {
        // There is a record at each checkpoint too.
        assert_eq!(counted(&run.join(name)), [planned(&plan); 3], "{}", plan["communication"]);
    }
}
