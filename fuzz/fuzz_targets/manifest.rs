//! Any text as the manifest of a cache's part, with a checksum that fits; bytes that are no text as they are.
#![no_main]

use std::fs;

use circuitlab::cache::{Cache, status};
use circuitlab_fuzz::{cache, folder, limited, put, registry, sealed, seed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        for codec in ["none", "int8+zstd"] {
            let text = fs::read_to_string(cache(codec, codec).join("manifest.json")).expect("was written");
            let (content, _) = text.rsplit_once(",\"checksum\"").expect("a checksum");
            seed(codec, format!("{content}}}").as_bytes());
        }
    },
    |bytes: &[u8]| {
        // With a checksum that fits, or nothing behind it would ever be reached.
        let whole = str::from_utf8(bytes).map_or_else(|_| bytes.to_vec(), |text| sealed(text).into_bytes());
        put("cache/part-001-of-001/manifest.json", &whole);
        let place = folder().join("cache");
        limited(whole.len(), || {
            let _ = status(&place);
            let _ = Cache::open(&place, registry());
        });
    }
);
