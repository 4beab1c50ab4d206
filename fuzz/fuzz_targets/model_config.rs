//! Any bytes as a model's `config.json`, read by whichever family it names.
#![no_main]

use std::fs;

use circuitlab_core::ModelSource;
use circuitlab_fuzz::{folder, limited, put, registry, repository, seed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        for entry in fs::read_dir(repository().join("tests/fixtures/models")).expect("fixtures") {
            let folder = entry.expect("an entry").path();
            if let Ok(config) = fs::read(folder.join("config.json")) {
                seed(&folder.file_name().expect("a name").to_string_lossy(), &config);
            }
        }
        seed("bundled", &fs::read(repository().join("examples/shakespeare/model/config.json")).expect("bundled"));
    },
    |bytes: &[u8]| {
        put("model/config.json", bytes);
        // A file of no tensors: this ends at the first that is missed, when the config is understood.
        put("model/model.safetensors", b"\x08\0\0\0\0\0\0\0{}      ");
        let source = ModelSource { without_weights: true, ..ModelSource::new(folder().join("model")) };
        assert!(limited(bytes.len(), || circuitlab::model::open(registry(), &source)).is_err());
    }
);
