//! Training by several processes.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use circuitlab_tests::plugins::{library, made};
use circuitlab_tests::{arg, circuitlab, stderr};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::pipeline::{self, SMALL};

/// One thread for each, so that the sums within a rank are the same however many there are.
const ALONE: [&str; 2] = ["--set", "compute.threads=1"];

/// Starts a rank of a run.
pub(crate) fn started(cache: &Path, out: &Path, extra: &[&str], rank: [usize; 2], port: u16) -> Child {
    let mut args = vec!["train", "--cache", arg(cache), "--out", arg(out)];
    args.extend(SMALL.into_iter().chain(ALONE));
    args.extend(extra);
    as_rank(circuitlab(args), rank, port).spawn().expect("starts")
}

/// A command as one of so many ranks.
pub(crate) fn as_rank(mut command: Command, rank: [usize; 2], port: u16) -> Command {
    let [rank, ranks] = rank.map(|number| number.to_string());
    command.env("RANK", rank).env("WORLD_SIZE", ranks).env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    // The program starts itself again without this.
    command.env("OMP_WAIT_POLICY", "PASSIVE").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Trains with so many ranks, into one run folder.
pub(crate) fn run(cache: &Path, folder: &Path, name: &str, extra: &[&str], ranks: usize) -> PathBuf {
    let run = folder.join(name);
    let port = free_port();
    let children: Vec<Child> = (0..ranks).map(|rank| started(cache, &run, extra, [rank, ranks], port)).collect();
    for child in children {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{name}: {}", stderr(&output));
    }
    run
}

/// The weight files of a run's result, by name.
pub(crate) fn weights(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(run.join("final"))
        .expect("a result")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

/// Every figure of a run but those of its pace and of what its ranks said to each other, in order.
pub(crate) fn figures(run: &Path) -> Vec<(String, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let record = |line: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).expect("a record");
    let flat = text.lines().flat_map(record).filter(|(name, _)| !["throughput/", "communication/"].iter().any(|own| name.starts_with(own)));
    flat.map(|(name, value)| (name, value.as_f64().unwrap_or(f64::NAN))).collect()
}

/// How far the tensors of two files are apart, as shares of their norms; the largest. Adam divides a gradient by its own size, so
/// that single values with hardly any gradient may differ by more than the rounding of the sums.
pub(crate) fn apart(one: &[u8], other: &[u8]) -> f64 {
    let (one, other) = (SafeTensors::deserialize(one).expect("safetensors"), SafeTensors::deserialize(other).expect("safetensors"));
    assert_eq!(one.len(), other.len());
    let floats = |tensor: &TensorView<'_>| -> Vec<f64> {
        match tensor.dtype() {
            Dtype::F32 => tensor.data().as_chunks().0.iter().map(|four| f64::from(f32::from_le_bytes(*four))).collect(),
            Dtype::F64 => tensor.data().as_chunks().0.iter().map(|eight| f64::from_le_bytes(*eight)).collect(),
            other => panic!("{other:?}"),
        }
    };
    let mut worst = 0.0_f64;
    for (name, tensor) in one.tensors() {
        let twin = other.tensor(&name).expect("the same names");
        assert_eq!((tensor.dtype(), tensor.shape()), (twin.dtype(), twin.shape()), "{name}");
        let (a, b) = (floats(&tensor), floats(&twin));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let difference = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
        worst = worst.max(difference / norm(&mut a.iter().copied()).max(f64::MIN_POSITIVE));
    }
    worst
}

#[test]
fn two_processes_train_what_one_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = library(&made("strategy", "my-strategy"), "", folder.path());
    let cache = pipeline::cache(folder.path(), "0..0.05", &[]);
    let single = pipeline::train(folder.path(), &cache, &ALONE);

    let run = run(&cache, folder.path(), "ranks", &["--plugin", arg(&plugin), "--strategy", "my-strategy"], 2);
    let found = weights(&run);
    assert!(found.len() >= 8);
    for ((name, one), (_, other)) in found.iter().zip(&weights(&single)) {
        let apart = apart(one, other);
        assert!(apart < 1e-5, "{name}: {apart} apart from one process");
    }
}

/// The strategies with the ranks that they are tried with.
const STRATEGIES: [(&str, &[&str], usize); 9] = [
    ("ddp-2", &["--strategy", "ddp"], 2),
    ("ddp-4", &["--strategy", "ddp"], 4),
    ("feature-2", &["--strategy", "feature-sharded"], 2),
    ("feature-4", &["--strategy", "feature-sharded"], 4),
    ("hybrid-2x2", &["--strategy", "hybrid", "--set", "strategy.feature=2"], 4),
    ("hybrid-1x2", &["--strategy", "hybrid", "--set", "strategy.data=1"], 2),
    ("fsdp-2", &["--strategy", "fsdp"], 2),
    ("fsdp-4", &["--strategy", "fsdp"], 4),
    ("sharded-2x2", &["--strategy", "hybrid", "--set", "strategy.feature=2", "--set", "strategy.shard=true"], 4),
];

/// Trains under each strategy, and compares weights and all figures with those of one process. Features do not divide by the ranks, nor
/// do rows.
fn every_strategy_trains_what_one_process_does(settings: &[&str], compared: &str, bound: f64) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.05", &[]);
    let mut common = vec!["--set", "schedule.steps=50", "--set", "size.d_features=63", "--set", "data.batch_rows=254"];
    common.extend(["--set", "metrics.every_steps=1", "--set", "checkpoint.every_steps=25", "--set", "metrics.dead_rows=1000"]);
    common.extend(settings);
    let single = run(&cache, folder.path(), "single", &common, 1);
    let (want, figures_of_one) = (weights(&single), figures(&single));
    assert!(figures_of_one.iter().any(|(name, value)| name.contains("dead") && *value > 0.0), "some features die");
    for (name, strategy, ranks) in STRATEGIES {
        let run = run(&cache, folder.path(), name, &[&common[..], strategy].concat(), ranks);
        for ((file, one), (_, other)) in weights(&run).iter().zip(&want) {
            let apart = apart(one, other);
            assert!(apart < bound, "{name}, {file}: {apart:e} apart from one process");
        }
        for ((figure, got), (_, want)) in figures(&run).iter().zip(&figures_of_one).filter(|((name, _), _)| name.starts_with(compared)) {
            let fits = (got - want).abs() <= bound * want.abs().max(1e-3) || (got.is_nan() && want.is_nan());
            assert!(fits, "{name}, {figure}: {got} and {want} of one process");
        }
    }
}

#[test]
fn every_strategy_trains_what_one_process_does_in_64_bits() {
    every_strategy_trains_what_one_process_does(&["--set", "compute.dtype=f64"], "", 1e-8);
}

/// In 32 bits a feature may fire on a row more or less, so that only losses are compared.
#[test]
fn every_strategy_trains_what_one_process_does_in_32_bits() {
    every_strategy_trains_what_one_process_does(&["--set", "data.micro_batch_rows=50"], "loss/", 1e-3);
}

/// A step of any form takes matrices that are shared out, and features whose reconstructions are added up.
#[test]
fn every_form_of_a_step_trains_what_one_process_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let common =
        ["--set", "schedule.steps=10", "--set", "size.d_features=31", "--set", "compute.dtype=f64", "--set", "data.micro_batch_rows=60"];
    let by_features = ["--strategy", "hybrid", "--set", "strategy.feature=2", "--set", "strategy.shard=true"];
    for (form, settings, strategy, ranks) in [
        ("kernels", &["--set", "transcoder.step=kernels"][..], &["--strategy", "fsdp"][..], 3),
        ("operations", &["--set", "transcoder.step=operations"], &by_features, 4),
        ("dense", &["--set", "transcoder.step=dense"], &by_features, 4),
        ("plt", &["--set", "transcoder=plt"], &["--strategy", "fsdp"], 2),
        ("skip", &["--set", "transcoder.skip=true"], &by_features, 4),
        ("skip-operations", &["--set", "transcoder.skip=true", "--set", "transcoder.step=operations"], &["--strategy", "ddp"], 2),
        ("skip-dense", &["--set", "transcoder.skip=true", "--set", "transcoder.step=dense"], &["--strategy", "feature-sharded"], 2),
        ("topk", &["--set", "activation=topk", "--set", "activation.k=4"], &["--strategy", "fsdp"], 2),
    ] {
        let common = [&common[..], settings].concat();
        let want = weights(&run(&cache, folder.path(), &format!("{form}-alone"), &common, 1));
        let found = weights(&run(&cache, folder.path(), form, &[&common[..], strategy].concat(), ranks));
        assert_eq!(found.len(), want.len());
        for ((file, one), (_, other)) in found.iter().zip(&want) {
            let apart = apart(one, other);
            assert!(apart < 1e-8, "{form}, {file}: {apart:e} apart from one process");
        }
    }
}

#[test]
fn a_run_of_several_ranks_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let int8 = ["--set", "optimiser.moments=int8"];
    for (name, strategy, ranks) in [
        ("ddp", &["--strategy", "ddp"][..], 2),
        ("feature", &["--strategy", "feature-sharded"], 2),
        ("hybrid", &["--strategy", "hybrid", "--set", "strategy.feature=2"], 4),
        ("fsdp", &["--strategy", "fsdp"], 2),
        ("sharded", &["--strategy", "hybrid", "--set", "strategy.feature=2", "--set", "strategy.shard=true"], 4),
        ("int8", &["--strategy", "feature-sharded", int8[0], int8[1], "--set", "size.d_features=63"], 2),
        ("int8-ddp", &["--strategy", "ddp", int8[0], int8[1], "--set", "size.d_features=63"], 2),
    ] {
        let run = run(&cache, folder.path(), name, strategy, ranks);
        let want = weights(&run);
        fs::remove_dir_all(run.join("final")).expect("removes");
        resume(&cache, &run, &[], ranks);
        assert!(weights(&run) == want, "{name}");
    }
}

/// Goes on with a run.
pub(crate) fn resume(cache: &Path, run: &Path, extra: &[&str], ranks: usize) {
    let port = free_port();
    let children: Vec<Child> = (0..ranks)
        .map(|rank| {
            let args = [&["train", "--cache", arg(cache), "--out", arg(run), "--resume"], extra].concat();
            as_rank(circuitlab(args), [rank, ranks], port).spawn().expect("starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn a_run_goes_on_with_other_ranks_under_another_strategy() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let run = run(&cache, folder.path(), "run", &["--strategy", "hybrid", "--set", "strategy.feature=2"], 4);
    let want = weights(&run);
    for (extra, ranks) in [
        (&["--strategy", "feature-sharded"][..], 3),
        (&["--strategy", "ddp"], 2),
        (&["--strategy", "fsdp"], 3),
        (&["--strategy", "single"], 1),
        (&["--set", "strategy.data=1"], 2),
    ] {
        fs::remove_dir_all(run.join("final")).expect("removes");
        resume(&cache, &run, extra, ranks);
        for ((file, one), (_, other)) in weights(&run).iter().zip(&want) {
            let apart = apart(one, other);
            assert!(apart < 1e-5, "{extra:?}, {file}: {apart:e}");
        }
    }
}

/// A number is rounded by chance, by its place in the whole parameter: who has it does not matter.
#[test]
fn moments_of_8_bits_do_not_depend_on_the_ranks() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let common = ["--set", "optimiser.moments=int8", "--set", "size.d_features=63"];
    let of = |name: &str, strategy: &[&str], ranks| run(&cache, folder.path(), name, &[&common[..], strategy].concat(), ranks);
    let single = weights(&of("single", &[], 1));
    let run = of("feature", &["--strategy", "feature-sharded"], 3);
    let compare = |run: &Path, what: &str| {
        for ((file, one), (_, other)) in weights(run).iter().zip(&single) {
            let apart = apart(one, other);
            // Where two sums differ in their last bits, a number may be rounded to the other side.
            assert!(apart < 1e-2, "{what}, {file}: {apart:e}");
        }
    };
    compare(&run, "three ranks");
    fs::remove_dir_all(run.join("final")).expect("removes");
    resume(&cache, &run, &["--strategy", "hybrid", "--set", "strategy.feature=2"], 4);
    compare(&run, "then four");
}

#[test]
fn ranks_of_different_runs_are_told_what_differs() {
    let folder = tempfile::tempdir().expect("a folder");
    let [cache, other] = ["0..0.03", "0..0.02"].map(|range| {
        let place = folder.path().join(range);
        fs::create_dir(&place).expect("a folder");
        pipeline::cache(&place, range, &[])
    });
    let ddp = ["--strategy", "ddp"];
    for (second, extra, messages) in [
        (&cache, &["--set", "sparsity.lambda=3"][..], ["rank 1 and rank 0 are not of one run", "`sparsity.lambda` is 3.0 there"]),
        (&other, &[], ["rank 1 and rank 0 are not of one run", "its cache has the digest"]),
    ] {
        let (out, port) = (folder.path().join("run"), free_port());
        let first = started(&cache, &out, &ddp, [0, 2], port);
        let second = started(second, &out, &[&ddp[..], extra].concat(), [1, 2], port);
        for child in [first, second] {
            let output = child.wait_with_output().expect("ends");
            assert!(!output.status.success(), "{}", stderr(&output));
            for message in messages {
                assert!(stderr(&output).contains(message), "{}", stderr(&output));
            }
        }
        assert!(!out.exists(), "nothing is left behind");
    }
}

/// What a run that is refused says, in one line, and that it leaves nothing behind.
pub(crate) fn refusal(cache: &Path, folder: &Path, extra: &[&str], ranks: usize) -> String {
    let out = folder.join("refused");
    let output = started(cache, &out, extra, [0, ranks], free_port()).wait_with_output().expect("ends");
    assert!(!output.status.success() && !out.exists(), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn what_ranks_cannot_do_is_said_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let hybrid = |settings: &[&'static str]| {
        let mut args = vec!["--strategy", "hybrid"];
        for setting in settings {
            args.extend(["--set", setting]);
        }
        args
    };
    for (args, ranks, message) in [
        (hybrid(&["strategy.data=3", "strategy.feature=2"]), 4, "a mesh of data = 3 and feature = 2 is for 6 ranks, and there are 4"),
        (hybrid(&["strategy.feature=3"]), 4, "strategy `hybrid`, key `feature`: 4 ranks cannot be divided into 3 equal parts"),
        (hybrid(&["strategy.feature=2", "strategy.timeout_seconds=0"]), 2, "key `timeout_seconds`: expected 1 to 604800, got 0"),
        (vec!["--strategy", "ddp", "--set", "strategy.join_seconds=1"], 2, "rank 1 did not come within 1 s"),
        (vec!["--strategy", "ddp", "--set", "strategy.shard=true"], 2, "unknown key `shard`"),
    ] {
        let said = refusal(&cache, folder.path(), &args, ranks);
        assert!(said.contains(message), "{said}");
    }
    let mut args = vec!["train", "--cache", arg(&cache), "--out", "/nowhere/to/be", "--strategy", "ddp"];
    args.extend(SMALL);
    let output = circuitlab(&args).output().expect("starts");
    assert!(stderr(&output).contains("the environment has no WORLD_SIZE: start the run by a launcher"), "{}", stderr(&output));
    // A plan waits for nobody.
    args.push("--dry-run");
    assert!(circuitlab(&args).output().expect("starts").status.success());
}
