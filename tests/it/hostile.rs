//! Libraries that are no plugins, were built otherwise, or misbehave: one clear line each, and the program stands.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_tests::plugins::{fixture, library};
use circuitlab_tests::{arg, binary, circuitlab, json, model, stderr, text};

/// Runs `plugins list` with a library and gives the one line that it fails with.
fn refused(file: &Path) -> String {
    let output = circuitlab(["plugins", "list", "--plugin", arg(file)]).output().expect("starts");
    let words = stderr(&output);
    assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{}: {words}", file.display());
    words
}

fn refused_with(file: &Path, words: &[&str]) {
    let line = refused(file);
    assert!(words.iter().all(|word| line.contains(word)), "{line}");
}

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("writes");
}

/// The library with one text replaced by another of the same length.
fn patched(good: &Path, from: &str, to: &str) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(good).expect("the library");
    let place = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("is in the header");
    bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    let copy = good.with_file_name("patched.so");
    put(&copy, &bytes);
    copy
}

#[test]
fn libraries_that_are_none_or_were_built_otherwise() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = library(&fixture("hostile"), "", folder.path());
    let bytes = fs::read(&good).expect("the library");
    let file = folder.path().join("file.so");

    refused_with(&folder.path().join("nowhere.so"), &["cannot read", "nowhere.so"]);
    for text in [b"".as_slice(), b"just text", b"\x7fELF and no more"] {
        put(&file, text);
        refused_with(&file, &["file.so`: not a whole shared library"]);
    }
    for length in [64, 4096, 20_000, 200_000, bytes.len() / 2, bytes.len() - 4096, bytes.len() - 1] {
        put(&file, &bytes[..length]);
        refused_with(&file, &["file.so`: not a whole shared library"]);
    }
    refused_with(&binary(), &["not a CircuitLab plugin", "exports no `CIRCUITLAB_PLUGIN_ABI`", "--features dynamic"]);

    for (key, from, to) in [
        ("rustc", "\nrustc=1.", "\nrustc=0."),
        ("core", "core=0.1.0", "core=0.0.9"),
        ("libtorch", "libtorch=2.11", "libtorch=2.10"),
        ("panic", "panic=unwind", "panic=abort!"),
        ("tch", "tch=0.24.0", "tch=0.26.0"),
    ] {
        let copy = patched(&good, from, to);
        refused_with(&copy, &["hostile 0.1.0 was built otherwise than this program", &format!("{key}: host `"), "build it again"]);
        let output = circuitlab(["plugins", "check", arg(&copy), "--json"]).output().expect("starts");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((told[0]["usable"].as_bool(), output.status.code()), (Some(false), Some(1)));
        assert_eq!(told[0]["differences"][0]["key"], key);
    }
    refused_with(&patched(&good, "circuitlab abi 1", "circuitlab abi 9"), &["its plugin header is damaged, or of another release"]);
}

#[test]
fn damaged_code_ends_no_more_than_the_trial() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = fs::read(library(&fixture("hostile"), "", folder.path())).expect("the library");
    let file = folder.path().join("damaged.so");
    // A plain generator: the same files every time.
    let mut state = 7_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for _ in 0..8 {
        let mut damaged = bytes.clone();
        for _ in 0..3000 {
            let place = next() % damaged.len();
            damaged[place] = next() as u8;
        }
        put(&file, &damaged);
        assert!(refused(&file).contains("damaged.so`: "));
    }
}

#[test]
fn entry_points_that_lie_fail_or_end_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let hostile = fixture("hostile");
    for (feature, words) in [
        ("nonsense-count", "it says that it registers 1000000007 plugins, and registered 0"),
        ("empty", "it registers no plugin"),
        ("init-fails", "it failed while it was loaded: it has no licence"),
        ("init-panics", "it failed while it was loaded: its entry point panicked: it panicked at once"),
        ("ends-the-process", "it ends the process that loads it (signal: 6"),
        ("exits-with-zero", "it ends the process that loads it (exit status: 0)"),
        ("clash", "codec `int8` is registered twice: by circuitlab-plugins 0.1.0 and by hostile 0.1.0 (`"),
    ] {
        refused_with(&library(&hostile, feature, folder.path()), &[words]);
    }
    // Two libraries of one name: nothing of the second is taken.
    let first = library(&hostile, "", folder.path());
    let second = folder.path().join("second.so");
    fs::copy(&first, &second).expect("copies");
    let output = circuitlab(["plugins", "list", "--plugin", arg(&first), "--plugin", arg(&second)]).output().expect("starts");
    let words = stderr(&output);
    assert!(words.contains("codec `moody` is registered twice: by hostile 0.1.0 (`") && words.contains("second.so"), "{words}");
    // So it is when both are checked, by name or by their folder; and a file that is named twice is checked once.
    for args in [&[arg(&first), arg(&second), arg(&first)][..], &[arg(folder.path())]] {
        let output = circuitlab(["plugins", "check", "--json"].iter().chain(args)).output().expect("starts");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let usable: Vec<_> = told.as_array().expect("a list").iter().map(|one| one["usable"].as_bool()).collect();
        assert_eq!((usable, output.status.code()), (vec![Some(true), Some(false)], Some(1)), "{told}");
        assert!(told[1]["error"].as_str().expect("an error").contains("codec `moody` is registered twice"), "{told}");
    }
    // The same library twice is one.
    let listed = json(&["plugins", "list", "--plugin", arg(&first), "--plugin", arg(&first)]);
    assert_eq!(listed.as_array().expect("a list").iter().filter(|plugin| plugin["name"] == "moody").count(), 1);
}

#[test]
fn what_panics_or_fails_in_a_library_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = library(&fixture("hostile"), "", folder.path());
    let (model, text, out) = (model(), text(), folder.path().join("cache"));
    for (mood, words) in [
        ("constructor-fails", "not in the mood"),
        ("constructor-panics", "codec `moody` panicked: the constructor panicked"),
        ("facts-panic", "codec `moody` panicked: its facts panicked"),
        ("method-fails", "it failed at work"),
        ("method-panics", "codec `moody` panicked: it panicked at work"),
        ("panics-with-a-bomb", "codec `moody` panicked: no message"),
        ("returns-a-bomb", "cannot read `x`"),
    ] {
        let codec = format!("codec={{ type = \"moody\", mood = \"{mood}\" }}");
        let args = ["cache", "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1", "--out", arg(&out), "--set", &codec];
        let output = circuitlab(args.into_iter().chain(["--plugin", arg(&plugin)])).output().expect("starts");
        let told = stderr(&output);
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{mood}: {told}");
        assert!(told.contains(words), "{mood}: {told}");
        fs::remove_dir_all(&out).ok();
    }
    let codec = "codec={ type = \"moody\", mood = \"drop-panics\" }";
    let args = ["cache", "--model", arg(&model), "--text", arg(&text), "--range", "0.99..1", "--out", arg(&out), "--set", codec];
    let output = circuitlab(args.into_iter().chain(["--plugin", arg(&plugin)])).output().expect("starts");
    assert!(output.status.success(), "nobody waits for a drop: {}", stderr(&output));
    let args = ["cache", "--model", "x", "--text", "y", "--out", arg(&out), "--set", "codec={ type = \"moody\", mod = \"good\" }"];
    let output = circuitlab(args.into_iter().chain(["--plugin", arg(&plugin)])).output().expect("starts");
    assert_eq!(output.status.code(), Some(1));
}
