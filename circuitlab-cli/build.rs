//! Gives this package's programs and tests an rpath to libtorch, so that they start without environment variables, and the
//! program libtorch's place.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let libraries = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_default();
    if !libraries.is_empty() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libraries}");
    }
    // For the crates that `plugins new` makes.
    println!("cargo:rustc-env=CIRCUITLAB_LIBTORCH={}", libraries.strip_suffix("/lib").unwrap_or(&libraries));
}
