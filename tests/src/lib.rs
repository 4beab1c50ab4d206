//! What the end-to-end tests share: where the built program is, and how it is run.

pub mod hub;
pub mod moments;
pub mod plugins;
pub mod s3;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The built program: `CIRCUITLAB_BIN`, or the one beside the running test.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("circuitlab"));
    let path = std::env::var_os("CIRCUITLAB_BIN").map(PathBuf::from).or_else(beside).unwrap_or_default();
    assert!(path.is_file(), "no program at `{}`; build it first: cargo build -p circuitlab-cli", path.display());
    path
}

/// The repository's top folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The bundled model's folder.
pub fn model() -> PathBuf {
    repository().join("examples/shakespeare/model")
}

/// The bundled text.
pub fn text() -> PathBuf {
    repository().join("examples/shakespeare/shakespeare.txt")
}

/// The program with no environment but what it needs to find a home, in a folder of no meaning: it must start anywhere.
pub fn circuitlab(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    bare(&binary(), args)
}

/// Another program, in the same way.
pub fn bare(program: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(program);
    command.args(args).env_clear().current_dir("/");
    command
}

/// Runs the program and gives its stdout.
///
/// # Panics
/// When it fails.
pub fn succeed(args: &[&str]) -> String {
    let output = circuitlab(args).output().expect("the program starts");
    assert!(output.status.success(), "circuitlab {}\n{}", args.join(" "), stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs the program with `--json` and gives what it printed.
///
/// # Panics
/// When it fails or prints anything else.
pub fn json(args: &[&str]) -> serde_json::Value {
    let with_json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&succeed(&with_json)).expect("JSON")
}

/// What a run said on stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A path as an argument.
///
/// # Panics
/// When it is no text, which no path of these tests is.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}
