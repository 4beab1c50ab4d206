//! Facts of this build that a plugin library's must equal, and an rpath to libtorch for this package's tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use sha2::{Digest, Sha256};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src");
    let libraries = env::var("DEP_TCH_LIBTORCH_LIB").ok();
    if let Some(libraries) = &libraries {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libraries}");
    }
    fact("SOURCE", &source_digest());
    fact("RUSTC", &compiler());
    fact("TARGET", &env::var("TARGET").unwrap_or_default());
    fact("CPU", &env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default());
    fact("FEATURES", &features());
    fact("LIBTORCH", &libraries.and_then(|libraries| libtorch_version(Path::new(&libraries))).unwrap_or_default());
}

fn fact(name: &str, value: &str) {
    println!("cargo:rustc-env=CIRCUITLAB_ABI_{name}={value}");
}

/// A digest of all that may cross into a plugin: every file of `src` but the test suites.
fn source_digest() -> String {
    let mut files = Vec::new();
    collect(Path::new("src"), &mut files);
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.to_string_lossy().as_bytes());
        hasher.update(fs::read(&file).expect("a file that was listed"));
    }
    let digest = hasher.finalize();
    let (first, _) = digest.split_first_chunk::<12>().expect("32 bytes");
    first.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources") {
        let path = entry.expect("the sources").path();
        if !path.is_dir() {
            files.push(path);
        } else if !path.ends_with("testing") {
            collect(&path, files);
        }
    }
}

/// The compiler's version with its commit, and LLVM's.
fn compiler() -> String {
    let output = Command::new(env::var("RUSTC").expect("set by cargo")).arg("-Vv").output().expect("the compiler runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    let commit: String = line("commit-hash:").chars().take(12).collect();
    format!("{} {commit} LLVM {}", line("release:"), line("LLVM version:"))
}

/// The features that may change what crosses; the others only add code on one side of the boundary.
fn features() -> String {
    const ONE_SIDED: [&str; 4] = ["DEFAULT", "TESTING", "LOADER", "DYNAMIC"];
    let mut on: Vec<String> = env::vars()
        .filter_map(|(key, _)| Some(key.strip_prefix("CARGO_FEATURE_")?.to_owned()))
        .filter(|name| !ONE_SIDED.contains(&name.as_str()))
        .collect();
    on.sort();
    on.join(",").to_lowercase()
}

/// `2.11.0`, from the headers that the C++ side of `tch` is compiled against.
fn libtorch_version(libraries: &Path) -> Option<String> {
    let include = libraries.parent()?.join("include/torch");
    let text = [include.join("headeronly/version.h"), include.join("version.h")].iter().find_map(|path| {
        println!("cargo:rerun-if-changed={}", path.display());
        fs::read_to_string(path).ok().filter(|text| text.contains("TORCH_VERSION_MAJOR "))
    })?;
    let number = |name: &str| {
        let rest = text.split(&format!("#define TORCH_VERSION_{name} ")).nth(1)?;
        rest.lines().next()?.trim().parse::<u32>().ok()
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}
