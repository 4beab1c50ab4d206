//! Training by several processes.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use circuitlab_tests::plugins::{library, made};
use circuitlab_tests::{arg, circuitlab, stderr};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::pipeline::{self, SMALL};

/// One thread for each, so that the sums within a rank are the same however many there are.
const ALONE: [&str; 2] = ["--set", "compute.threads=1"];

fn started(cache: &Path, out: &Path, plugin: &Path, rank: usize, port: u16) -> Child {
    let mut args = vec!["train", "--cache", arg(cache), "--out", arg(out), "--plugin", arg(plugin), "--strategy", "my-strategy"];
    args.extend(SMALL.into_iter().chain(ALONE));
    let mut command = circuitlab(args);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    // The program starts itself again without this.
    command.env("OMP_WAIT_POLICY", "PASSIVE").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts")
}

/// The weight files of a run's result, by name.
fn weights(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(run.join("final"))
        .expect("a result")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("a file")))
        .collect();
    files.sort();
    files
}

/// How far the tensors of two files are apart, as shares of their norms; the largest. Adam divides a gradient by its own size, so
/// that single values with hardly any gradient may differ by more than the rounding of the sums.
fn apart(one: &[u8], other: &[u8]) -> f32 {
    let (one, other) = (SafeTensors::deserialize(one).expect("safetensors"), SafeTensors::deserialize(other).expect("safetensors"));
    assert_eq!(one.len(), other.len());
    let floats = |bytes: &[u8]| bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four"))).collect::<Vec<_>>();
    let mut worst = 0.0_f32;
    for (name, tensor) in one.tensors() {
        let twin = other.tensor(&name).expect("the same names");
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, twin.shape()), "{name}");
        let (a, b) = (floats(tensor.data()), floats(twin.data()));
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
        let difference = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
        worst = worst.max(difference / norm(&mut a.iter().copied()).max(f32::MIN_POSITIVE));
    }
    worst
}

#[test]
fn two_processes_train_what_one_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = library(&made("strategy", "my-strategy"), "", folder.path());
    let cache = pipeline::cache(folder.path(), "0..0.05", &[]);
    let single = pipeline::train(folder.path(), &cache, &ALONE);

    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let runs = [0, 1].map(|rank| folder.path().join(format!("rank-{rank}")));
    let ranks = [0, 1].map(|rank| started(&cache, &runs[rank], &plugin, rank, port));
    for rank in ranks {
        let output = rank.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let [first, second] = runs.map(|run| weights(&run));
    assert!(first.len() >= 8 && first == second, "the ranks' weights are the same bits");
    for ((name, one), (_, other)) in first.iter().zip(&weights(&single)) {
        let apart = apart(one, other);
        assert!(apart < 1e-5, "{name}: {apart} apart from one process");
    }
}
