//! Any bytes as a cache's chunk, behind a manifest that expects a file of their length.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use circuitlab::cache::{Cache, Side};
use circuitlab_fuzz::{cache, folder, limited, put, registry, sealed, seed};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static MANIFEST: OnceLock<Value> = OnceLock::new();

fuzz_target!(
    init: {
        let part = cache("seed", "int8+zstd");
        seed("int8+zstd", &fs::read(part.join("chunk-000000.clab")).expect("was written"));
        let text = fs::read(part.join("manifest.json")).expect("was written");
        MANIFEST.get_or_init(|| {
            let mut manifest: Value = serde_json::from_slice(&text).expect("was written");
            manifest.as_object_mut().expect("a table").remove("checksum");
            manifest
        });
    },
    |bytes: &[u8]| {
        let mut manifest = MANIFEST.get().expect("made at the start").clone();
        manifest["chunks"][0]["bytes"] = bytes.len().into();
        put("cache/part-001-of-001/manifest.json", sealed(&manifest.to_string()).as_bytes());
        put("cache/part-001-of-001/chunk-000000.clab", bytes);
        let cache = Cache::open(&folder().join("cache"), registry()).expect("a good manifest");
        limited(bytes.len(), || {
            #[allow(unused_mut, reason = "readers may or may not keep a place in the file")]
            let Ok(mut chunk) = cache.chunk(0) else { return };
            let _ = chunk.index();
            for layer in 0..=cache.identity().layers {
                let _ = (chunk.values(layer, Side::Inputs), chunk.values(layer, Side::Targets));
            }
        });
    }
);
