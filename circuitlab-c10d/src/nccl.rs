//! The library that makes groups over NCCL. It is opened where a group of CUDA devices is asked for, and is a file of its own since it
//! needs libtorch's CUDA half, which a CPU machine lacks.

use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;

use libloading::Library;

use crate::ffi::{NcclGroup, Outcome, nccl_symbol};

const FILE: &str = "libcircuitlab_nccl.so";
const VARIABLE: &str = "CIRCUITLAB_NCCL";

/// The function that makes a group; the library stays open.
pub(crate) fn function() -> Outcome<NcclGroup> {
    static LIBRARY: OnceLock<Outcome<Library>> = OnceLock::new();
    let library = LIBRARY.get_or_init(open).as_ref().map_err(Clone::clone)?;
    nccl_symbol(library)
}

fn open() -> Outcome<Library> {
    let places = places();
    let Some(file) = places.iter().find(|place| place.is_file()) else {
        let places: Vec<String> = places.iter().map(|place| format!("`{}`", place.display())).collect();
        return Err(format!(
            "ranks on CUDA devices need the library {FILE}, and it is not at {}; build it by `scripts/build-nccl`, and name its place in {VARIABLE} where that is another",
            places.join(" or ")
        ));
    };
    crate::ffi::open_library(file)
        .map_err(|error| format!("cannot open `{}`: {error}; was it built by `scripts/build-nccl` for this libtorch?", file.display()))
}

/// Where it may be: at the place that the user names, or beside the program.
fn places() -> Vec<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    env::current_exe().ok().and_then(|program| Some(program.parent()?.join(FILE))).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_what_to_do() {
        // No test of this crate has one beside it.
        let error = open().map(drop).expect_err("not there");
        assert!(error.contains("libcircuitlab_nccl.so") && error.contains("build it by `scripts/build-nccl`"), "{error}");
    }
}
