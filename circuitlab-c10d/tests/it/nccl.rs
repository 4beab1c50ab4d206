//! The library for NCCL is built, and finds all that it needs in the libraries that it will be loaded beside. No GPU is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSymbol};

/// Of libtorch, as it lies beside the library that is linked.
const LIBTORCH: [&str; 5] = ["libtorch_cuda.so", "libtorch_cpu.so", "libtorch.so", "libc10.so", "libc10_cuda.so"];

/// Of the system, by the name that a program asks for.
const SYSTEM: [&str; 5] = ["libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where a library of this process is: among the files that it has mapped, whose names may have more of a version.
fn mapped(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").expect("Linux");
    let mut files = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    files.find(|file| file.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))).map(Path::to_path_buf)
}

fn symbols(file: &Path, defined: bool) -> BTreeSet<String> {
    let bytes = fs::read(file).expect("a library");
    let elf = ElfFile64::<Endianness>::parse(&*bytes).expect("ELF");
    let mut names = BTreeSet::new();
    for symbol in elf.dynamic_symbols() {
        // Nobody needs to define what is asked for weakly.
        if symbol.is_undefined() != defined && (defined || !symbol.is_weak()) {
            names.extend(symbol.name().ok().filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    names
}

#[test]
fn its_symbols_are_all_there() {
    let torch = mapped("libtorch_cpu.so").expect("this process runs a libtorch");
    let libraries = torch.parent().expect("a folder");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let built = folder.join("libcircuitlab_nccl.so");
    let output = Command::new(repository().join("scripts/build-nccl"))
        .arg(&built)
        .env("LIBTORCH", libraries.parent().expect("a folder"))
        .output()
        .expect("the script starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(symbols(&built, true).contains("clc_nccl_group"));

    let mut known = BTreeSet::new();
    for name in LIBTORCH {
        known.extend(symbols(&libraries.join(name), true));
    }
    for name in SYSTEM {
        known.extend(mapped(name).map(|file| symbols(&file, true)).unwrap_or_default());
    }
    let missing: Vec<String> = symbols(&built, false).difference(&known).cloned().collect();
    assert!(missing.is_empty(), "nobody defines {missing:?}");
}
