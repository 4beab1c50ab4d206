//! Any bytes as the manifest of a cache's part.
#![no_main]

use std::fs;

use circuitlab::cache::{Cache, status};
use circuitlab_fuzz::{cache, folder, limited, put, registry, seed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        for codec in ["none", "int8+zstd"] {
            seed(codec, &fs::read(cache(codec, codec).join("manifest.json")).expect("was written"));
        }
    },
    |bytes: &[u8]| {
        put("cache/part-001-of-001/manifest.json", bytes);
        let place = folder().join("cache");
        limited(bytes.len(), || {
            let _ = status(&place);
            let _ = Cache::open(&place, registry());
        });
    }
);
