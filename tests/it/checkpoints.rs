//! Checkpoints by several ranks: whole or not there, damage is named, and `circuitlab export` takes transcoders out of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use circuitlab_tests::{arg, binary, circuitlab, json, stderr};

use crate::pipeline::{self, SMALL};
use crate::ranks::{as_rank, free_port, resume, run, started, weights};

const TWO: [&str; 2] = ["--strategy", "feature-sharded"];

fn ended(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().expect("ends")).collect()
}

/// Everything in a folder that was left half-written.
fn parts(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "part") {
            found.push(path.clone());
        }
        if path.is_dir() {
            found.extend(parts(&path));
        }
    }
    found
}

/// A limit on the size of files stands in for a full disk of one of two hosts.
#[cfg(unix)]
#[test]
fn a_rank_that_cannot_write_ends_all_and_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let want = weights(&run(&cache, folder.path(), "whole", &TWO, 2));
    for full in [0, 1] {
        let (out, port) = (folder.path().join(format!("full-{full}")), free_port());
        let rank = |rank: usize| {
            if rank != full {
                return started(&cache, &out, &TWO, [rank, 2], port);
            }
            let mut args = vec!["train", "--cache", arg(&cache), "--out", arg(&out), "--set", "compute.threads=1"];
            args.extend(SMALL.into_iter().chain(TWO));
            let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
            let script = format!("trap '' XFSZ; ulimit -f 100; exec '{}' {}", binary().display(), quoted.join(" "));
            let mut command = Command::new("sh");
            command.args(["-c", &script]).env_clear().current_dir("/");
            as_rank(command, [rank, 2], port).spawn().expect("sh starts")
        };
        let outputs = ended((0..2).map(rank).collect());
        for (at, output) in outputs.iter().enumerate() {
            let said = stderr(output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            let named = if at == full { "cannot".to_owned() } else { format!("rank {full} failed: cannot") };
            assert!(said.contains(&named), "rank {at}: {said}");
        }
        assert_eq!(parts(&out), Vec::<PathBuf>::new());
        resume(&cache, &out, &[], 2);
        assert!(weights(&out) == want, "the run goes on as if nothing had been");
    }
}

/// Both ranks are killed over and over while every step writes a checkpoint; what is there is read each time.
#[test]
fn ranks_killed_while_they_write_leave_whole_checkpoints() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.03", &[]);
    let settings = [&TWO[..], &["--set", "checkpoint.every_steps=1", "--set", "metrics.every_steps=7"]].concat();
    let want = weights(&run(&cache, folder.path(), "whole", &settings, 2));
    let out = folder.path().join("run");
    for round in 0..6_u64 {
        let port = free_port();
        let spawn = |rank: usize| {
            if out.join("config.toml").exists() {
                let args = ["train", "--cache", arg(&cache), "--out", arg(&out), "--resume"];
                return as_rank(circuitlab(args), [rank, 2], port).spawn().expect("starts");
            }
            started(&cache, &out, &settings, [rank, 2], port)
        };
        let mut children: Vec<Child> = (0..2).map(spawn).collect();
        // Into the steps, each time a little later.
        let before = fs::read_dir(out.join("checkpoints")).map_or(0, Iterator::count);
        let begun = || fs::read_dir(out.join("checkpoints")).map_or(0, Iterator::count) > before.min(1);
        for _ in 0..2000 {
            if begun() || children.iter_mut().any(|child| child.try_wait().expect("a child").is_some()) {
                break;
            }
            sleep(Duration::from_millis(5));
        }
        sleep(Duration::from_millis(13 * round));
        for child in &mut children {
            child.kill().expect("SIGKILL");
        }
        ended(children);
    }
    resume(&cache, &out, &[], 2);
    assert!(weights(&out) == want, "killed and whole runs differ");
    assert_eq!(parts(&out), Vec::<PathBuf>::new());
}

/// Changes one byte, counted from the end of a file.
fn damage(file: &Path, from_end: usize) {
    let mut bytes = fs::read(file).expect("reads");
    let at = bytes.len() - from_end;
    bytes[at] ^= 0x10;
    fs::File::create(file).and_then(|mut file| std::io::Write::write_all(&mut file, &bytes)).expect("writes");
}

#[test]
fn damaged_checkpoints_are_told_by_file_and_tensor() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let run = run(&cache, folder.path(), "run", &TWO, 2);
    let checkpoint = run.join("checkpoints/step-00000020");
    fs::remove_dir_all(run.join("final")).expect("removes");
    let state = checkpoint.join("train/state.json");
    let sound = fs::read_to_string(&state).expect("a state");
    let resumed = |ranks: usize, extra: &[&str]| {
        let port = free_port();
        let args = [&["train", "--cache", arg(&cache), "--out", arg(&run), "--resume"], extra].concat();
        ended((0..ranks).map(|rank| as_rank(circuitlab(&args), [rank, ranks], port).spawn().expect("starts")).collect())
    };
    fs::File::create(&state)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"{\"format\":1,\"step\":20,\"sampler\":{}}"))
        .expect("writes");
    for output in resumed(2, &[]) {
        assert!(stderr(&output).contains("checkpoint format 1, and this version goes on from format 2"), "{}", stderr(&output));
    }
    fs::File::create(&state).and_then(|mut file| std::io::Write::write_all(&mut file, sound.as_bytes())).expect("writes");

    // The last row of the last tensor: not that of the rank with the first features.
    damage(&checkpoint.join("train/layer-002.safetensors"), 3);
    for (ranks, extra) in [(2, &[][..]), (1, &["--strategy", "single"])] {
        for output in resumed(ranks, extra) {
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("train/layer-002.safetensors") && said.contains("is damaged: rows 32..64"), "{said}");
        }
    }
    let out = folder.path().join("exported");
    let export = || circuitlab(["export", "--from", arg(&run), "--out", arg(&out)]).stdout(Stdio::null()).output().expect("starts");
    assert!(export().status.success(), "what is exported is sound: {}", stderr(&export()));
    fs::remove_dir_all(&out).expect("removes");
    damage(&checkpoint.join("W_dec_1.safetensors"), 5);
    let said = stderr(&export());
    assert!(said.contains("W_dec_1.safetensors") && said.contains("tensor `W_dec_1` is damaged: rows 32..64"), "{said}");
    assert!(!out.exists() && parts(folder.path()).is_empty());
}

#[test]
fn a_transcoder_is_taken_out_of_a_run_or_a_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = pipeline::cache(folder.path(), "0..0.02", &[]);
    let run = run(&cache, folder.path(), "run", &TWO, 2);
    let files = |folder: &Path| -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
        let mut all: Vec<_> =
            files.map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("reads"))).collect();
        all.sort();
        all
    };
    let checkpoint = run.join("checkpoints/step-00000020");
    for (from, is, checked) in [(&run, run.join("final"), false), (&checkpoint, checkpoint.clone(), true)] {
        let out = folder.path().join(format!("out-{checked}"));
        let said = json(&["export", "--from", arg(from), "--out", arg(&out)]);
        assert_eq!((said["files"].as_u64(), said["checked"].as_bool()), (Some(8), Some(checked)), "{said}");
        assert!(files(&out) == files(&is), "a copy is a copy");
        assert!(!out.join("train").exists());
    }
    let half = folder.path().join("half");
    circuitlab_tests::succeed(&["export", "--from", arg(&run), "--out", arg(&half), "--dtype", "bf16"]);
    let size = |folder: &Path| files(folder).iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    assert!(size(&half) * 100 < size(&run.join("final")) * 55, "{} of {}", size(&half), size(&run.join("final")));
    let (model, text) = (circuitlab_tests::model(), circuitlab_tests::text());
    circuitlab_tests::succeed(&["eval", "--clt", arg(&half), "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1"]);
}
