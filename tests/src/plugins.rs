//! Plugin crates outside of the workspace, as a contributor would make and build them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{arg, repository, succeed};

/// The target folder that the running test was built into; plugin crates share its dependencies.
///
/// # Panics
/// When the test is not where cargo puts tests.
pub fn target() -> PathBuf {
    let test = std::env::current_exe().expect("this test");
    test.ancestors().nth(3).expect("target/debug/deps/test").to_path_buf()
}

/// Holds back other tests that build crates.
fn lock() -> File {
    let lock = File::create(target().join("plugin-crates.lock")).expect("a folder that can be written");
    lock.lock().expect("a lock");
    lock
}

/// A crate that `plugins new` made, below the target folder: built once for all tests and runs that find it unchanged.
///
/// # Panics
/// When the crate cannot be made.
pub fn made(kind: &str, name: &str) -> PathBuf {
    let _lock = lock();
    let fresh = tempfile::tempdir().expect("a folder");
    let made = fresh.path().join(name);
    succeed(&["plugins", "new", kind, name, "--out", arg(&made)]);
    let place = target().join("plugin-crates").join(name);
    copy_changed(&made, &place);
    place
}

/// A crate of `tests/fixtures/plugins`, copied out of the workspace.
///
/// # Panics
/// When it cannot be copied.
pub fn fixture(name: &str) -> PathBuf {
    let _lock = lock();
    let top = repository().canonicalize().expect("the repository");
    let place = target().join("plugin-crates").join(name);
    let source = top.join("tests/fixtures/plugins").join(name);
    let text = fs::read_to_string(source.join("Cargo.toml")).expect("a manifest");
    copy_changed(&source.join("src"), &place.join("src"));
    if let Ok(build) = fs::read(source.join("build.rs")) {
        put_changed(&place.join("build.rs"), &build);
    }
    put_changed(&place.join("Cargo.toml"), text.replace("../../../..", arg(&top)).as_bytes());
    put_changed(&place.join("Cargo.lock"), &fs::read(top.join("Cargo.lock")).expect("the lock file"));
    let libtorch = fs::read(top.join(".cargo/config.toml")).expect("made by scripts/setup");
    put_changed(&place.join(".cargo/config.toml"), &libtorch);
    place
}

/// Copies a folder without touching files that are the same, whose times cargo looks at.
fn copy_changed(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_changed(&from, &to);
        } else if entry.file_name() != "Cargo.lock" || !to.exists() {
            put_changed(&to, &fs::read(&from).expect("a file"));
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
fn put_changed(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|there| there == content) {
        return;
    }
    fs::create_dir_all(path.parent().expect("below the target folder")).expect("a folder");
    fs::write(path, content).expect("writes");
}

/// Runs cargo in a crate, with the target folder of this workspace.
///
/// # Panics
/// With cargo's own words when it fails.
pub fn cargo(folder: &Path, args: &[&str]) {
    let _lock = lock();
    run_cargo(folder, args);
}

fn run_cargo(folder: &Path, args: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // What cargo told this test of its own package is not so of that one.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    command.args(args).current_dir(folder).env("CARGO_TARGET_DIR", target()).env_remove("CARGO_MANIFEST_DIR");
    let output = command.output().expect("cargo starts");
    assert!(output.status.success(), "cargo {} in {}\n{}", args.join(" "), folder.display(), String::from_utf8_lossy(&output.stderr));
}

/// Builds a crate's program, copied to where no other build replaces it.
///
/// # Panics
/// When it cannot be built.
pub fn program(folder: &Path, into: &Path) -> PathBuf {
    let _lock = lock();
    run_cargo(folder, &["build"]);
    let name = format!("{}{}", folder.file_name().expect("a name").to_string_lossy(), std::env::consts::EXE_SUFFIX);
    let copy = into.join(&name);
    fs::copy(target().join("debug").join(&name), &copy).expect("cargo built it");
    copy
}

/// Builds a crate as a library to load, copied to where no other build replaces it.
///
/// # Panics
/// When it cannot be built.
pub fn library(folder: &Path, features: &str, into: &Path) -> PathBuf {
    let all = format!("dynamic,{features}");
    // Held until the library is copied: it has one name whatever its features.
    let _lock = lock();
    run_cargo(folder, &["rustc", "--lib", "--crate-type", "cdylib", "--features", all.trim_end_matches(',')]);
    let name = folder.file_name().expect("a name").to_string_lossy().replace('-', "_");
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let copy = into.join(&file);
    fs::copy(target().join("debug").join(&file), &copy).expect("cargo built it");
    copy
}
