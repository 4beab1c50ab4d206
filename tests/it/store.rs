//! Caches in an object store, over a small S3 server of this process.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use circuitlab_tests::s3::{Fault, S3};
use circuitlab_tests::{arg, circuitlab, model, stderr, text};

use crate::pipeline::{self, SMALL};

const CHUNKS: [&str; 2] = ["--set", "chunk_rows=1500"];

fn command(store: &S3, args: &[&str]) -> Command {
    let mut command = circuitlab(args);
    store.known_to(&mut command).env("OMP_WAIT_POLICY", "PASSIVE");
    command
}

fn succeed(store: &S3, args: &[&str]) -> String {
    let output = command(store, args).output().expect("the program starts");
    assert!(output.status.success(), "circuitlab {}\n{}", args.join(" "), stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs the program, which must fail with one line that holds all these words.
fn fails(store: &S3, args: &[&str], words: &[&str]) {
    let output = command(store, args).output().expect("the program starts");
    check_failure(&output, words);
}

fn check_failure(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !line.starts_with("hint: ")).collect();
    assert_eq!(errors.len(), 1, "one line, not:\n{said}");
    for word in words {
        assert!(errors[0].contains(word), "`{word}` is not in: {said}");
    }
}

fn build<'a>(model: &'a Path, text: &'a Path, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["cache", "--model", arg(model), "--text", arg(text), "--range", "0..0.02", "--out", out];
    args.extend(CHUNKS);
    args.extend(more);
    args
}

/// Names and bytes of all files of a local cache.
fn files(cache: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for part in std::fs::read_dir(cache).expect("a cache").map(|entry| entry.expect("an entry")) {
        for file in std::fs::read_dir(part.path()).expect("a part").map(|entry| entry.expect("an entry")) {
            let name = format!("/{}/{}", part.file_name().display(), file.file_name().display());
            files.push((name, std::fs::read(file.path()).expect("a file")));
        }
    }
    files.sort();
    files
}

fn check_same(got: &[(String, Vec<u8>)], want: &[(String, Vec<u8>)]) {
    assert_eq!(got.iter().map(|(name, _)| name).collect::<Vec<_>>(), want.iter().map(|(name, _)| name).collect::<Vec<_>>());
    got.iter().zip(want).for_each(|((name, got), (_, want))| assert!(got == want, "{name} differs"));
}

#[test]
fn jobs_that_are_killed_and_resumed_write_what_they_write_locally_and_it_is_trained_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, model, text) = (S3::start(), model(), text());
    let url = "s3://bucket/some/cache";
    pipeline::cache(folder.path(), "0..0.02", &[&CHUNKS[..], &["--job", "1/2"]].concat());
    let local = pipeline::cache(folder.path(), "0..0.02", &[&CHUNKS[..], &["--job", "2/2"]].concat());

    let first = build(&model, &text, url, &["--job", "1/2"]);
    let mut child = command(&store, &first).spawn().expect("the program starts");
    let chunks = || store.objects("some/cache").iter().filter(|(name, _)| name.contains(".clab")).count();
    let started = Instant::now();
    while chunks() < 2 {
        assert!(started.elapsed() < Duration::from_mins(5) && child.try_wait().expect("a child").is_none(), "{} chunks", chunks());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().and_then(|()| child.wait()).expect("SIGKILL");
    fails(&store, &first, &[url, "exists already"]);
    succeed(&store, &build(&model, &text, url, &["--job", "1/2", "--resume"]));
    fails(&store, &["train", "--cache", url, "--out", arg(&folder.path().join("early"))], &[url, "1 of 2 parts are missing"]);
    succeed(&store, &build(&model, &text, url, &["--job", "2/2"]));
    check_same(&store.objects("some/cache"), &files(&local));

    assert!(succeed(&store, &["cache", "verify", url]).contains("whole"));
    assert!(succeed(&store, &["cache", "status", url]).contains("job 2/2"));
    let steps = |run: &Path, cache: &str| {
        let args = [&["train", "--cache", cache, "--out", arg(run)], &SMALL[..], &["--set", "schedule.steps=8"]].concat();
        succeed(&store, &args);
        std::fs::read(run.join("final/W_enc_0.safetensors")).expect("a transcoder")
    };
    // Readers meet servers that stumble.
    store.fail("GET", ".clab", 3, 2, Fault::Status(503));
    store.fail("GET", ".clab", 9, 2, Fault::Cut);
    let (far, near) = (folder.path().join("far"), folder.path().join("near"));
    assert_eq!(steps(&far, url), steps(&near, arg(&local)), "the same rows, wherever they lie");
    store.mend();
    std::fs::remove_dir_all(far.join("final")).expect("removes");
    succeed(&store, &["train", "--cache", url, "--out", arg(&far), "--resume"]);
    // A cache that was moved is the same cache.
    std::fs::remove_dir_all(far.join("final")).expect("removes");
    succeed(&store, &["train", "--cache", arg(&local), "--out", arg(&far), "--resume"]);
}

#[test]
fn damage_in_a_store_is_named() {
    let (store, model, text) = (S3::start(), model(), text());
    succeed(&store, &build(&model, &text, "s3://bucket/cache", &[]));
    let (name, mut bytes) = store.objects("cache/part-001-of-001/").into_iter().nth(1).expect("a chunk");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    store.put(&format!("cache/part-001-of-001/{name}"), bytes);
    store.remove("cache/part-001-of-001/chunk-000000.clab");
    let output = command(&store, &["cache", "verify", "s3://bucket/cache"]).output().expect("the program starts");
    let said = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("s3://bucket/cache/part-001-of-001/chunk-000000.clab: cannot be read"), "{said}");
    assert!(said.contains(&format!("s3://bucket/cache/part-001-of-001/{name}: has a wrong checksum")), "{said}");
}

#[test]
fn a_store_that_stumbles_is_asked_again_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, model, text) = (S3::start(), model(), text());
    let want = files(&pipeline::cache(folder.path(), "0..0.02", &CHUNKS));
    store.fail("PUT", ".clab", 1, 2, Fault::Status(500));
    store.fail("PUT", "chunk-000002", 0, 1, Fault::AnswerLost);
    store.fail("PUT", "manifest.json", 1, 1, Fault::Status(500));
    // Whether this one was written can be known only by looking.
    store.fail("PUT", "manifest.json", 2, 1, Fault::AnswerLost);
    store.fail("PUT", "manifest.json", 3, 1, Fault::Lost);
    succeed(&store, &build(&model, &text, "s3://bucket/a", &[]));
    check_same(&store.objects("a"), &want);
}

#[test]
fn a_store_that_is_gone_is_one_clear_line_and_the_job_goes_on_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, model, text) = (S3::start(), model(), text());
    let want = files(&pipeline::cache(folder.path(), "0..0.02", &CHUNKS));
    store.fail("PUT", "", 4, 1_000_000, Fault::Status(500));
    fails(&store, &build(&model, &text, "s3://bucket/b", &[]), &["cannot write `s3://bucket/b/part-001-of-001/", "500"]);
    let kept = store.objects("b");
    assert!(kept.len() >= 2, "{} objects", kept.len());
    store.mend();
    store.fail("GET", "", 0, 1_000_000, Fault::Lost);
    fails(&store, &build(&model, &text, "s3://bucket/b", &["--resume"]), &["s3://bucket/b"]);
    store.mend();
    succeed(&store, &build(&model, &text, "s3://bucket/b", &["--resume"]));
    check_same(&store.objects("b"), &want);

    // Nobody listens at all.
    let mut nobody = circuitlab(["cache", "status", "s3://bucket/b"]);
    store.known_to(&mut nobody).env("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    check_failure(&nobody.output().expect("the program starts"), &["cannot read `s3://bucket/b`", "refused"]);
}

#[test]
fn a_second_writer_of_a_part_is_stopped() {
    let (store, model, text) = (S3::start(), model(), text());
    store.fail("PUT", "manifest.json", 2, 1, Fault::Overtaken);
    let words = ["s3://bucket/c/part-001-of-001/manifest.json", "another process has written this part"];
    fails(&store, &build(&model, &text, "s3://bucket/c", &[]), &words);
    let folder = tempfile::tempdir().expect("a folder");
    fails(&store, &["cache", "status", "ftp://host/c"], &["ftp://host/c", "`s3://`, `gs://`, `az://` or `file://`"]);
    let run = ["train", "--cache", arg(folder.path()), "--out", "s3://bucket/run"];
    fails(&store, &run, &["s3://bucket/run", "folder is a local one"]);
}

#[test]
fn a_file_url_is_the_folder() {
    let (store, model, text) = (S3::start(), model(), text());
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}/cache", arg(folder.path()));
    succeed(&store, &build(&model, &text, &url, &[]));
    assert!(folder.path().join("cache/part-001-of-001/manifest.json").is_file());
    assert!(succeed(&store, &["cache", "verify", &url]).contains("whole"));
}
