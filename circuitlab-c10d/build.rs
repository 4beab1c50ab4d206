//! Compiles the C++ side against libtorch's headers, and gives this package's tests an rpath to libtorch.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cpp");
    // torch-sys tells where the libtorch is that it links.
    let libraries = env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    let include = Path::new(&libraries).parent().unwrap_or(Path::new("")).join("include");
    let header = include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp");
    assert!(header.is_file(), "no `{}`; expected the headers of a libtorch that has distributed training", header.display());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("cpp/shim.cpp")
        .include("cpp/gloo_stub")
        .flag_if_supported("-fvisibility=hidden")
        .flag(format!("-isystem{}", include.display()))
        .flag(format!("-isystem{}", include.join("torch/csrc/api/include").display()))
        .compile("circuitlab_c10d");
    println!("cargo:rustc-link-search=native={libraries}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libraries}");
}
