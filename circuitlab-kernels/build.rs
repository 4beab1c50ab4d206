//! Gives this package's tests an rpath to libtorch, so that they start without environment variables.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(libraries) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libraries}");
    }
}
