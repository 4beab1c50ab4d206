//! Any bytes as an archive of numpy arrays.
#![no_main]

use std::fs;

use circuitlab::formats::check_npz;
use circuitlab_fuzz::{limited, put, repository, seed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        let folder = repository().join("tests/fixtures/formats/gemma_scope");
        for (name, place) in [("plain", "layer_0/width_10/average_l0_7"), ("packed", "layer_1/width_10/average_l0_8"), ("turned", "layer_2/width_10/average_l0_9")] {
            seed(name, &fs::read(folder.join(place).join("params.npz")).expect("is in the repository"));
        }
    },
    |bytes: &[u8]| {
        let path = put("params.npz", bytes);
        // Deflate makes up to 1032 bytes of one.
        limited(bytes.len() * 32, || drop(check_npz(&path)));
    }
);
