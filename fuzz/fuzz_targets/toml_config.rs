//! Any bytes as a config file, and its lines as `--set`.
#![no_main]

use std::fs;

use circuitlab::cache::CacheConfig;
use circuitlab::config::{resolve, to_toml};
use circuitlab::train::TrainConfig;
use circuitlab_fuzz::{limited, put, repository, seed};
use libfuzzer_sys::fuzz_target;
use serde_json::to_value;

fuzz_target!(
    init: {
        seed("train", to_toml(&TrainConfig::default()).expect("plain data").as_bytes());
        seed("cache", to_toml(&CacheConfig::default()).expect("plain data").as_bytes());
        seed("shakespeare", &fs::read(repository().join("examples/shakespeare/train.toml")).expect("bundled"));
        seed("sets", b"sparsity.lambda=4\nactivation={type = \"topk\", k = 8}\ntranscoder=plt\ntranscoder.x=[1, 2.5, \"a\"]");
    },
    |bytes: &[u8]| {
        let path = put("config.toml", bytes);
        let presets = (to_value(TrainConfig::default()).expect("plain data"), to_value(CacheConfig::default()).expect("plain data"));
        let sets: Vec<String> = String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect();
        limited(bytes.len(), || {
            let _ = resolve::<TrainConfig>(Some(&path), &[], presets.0.clone());
            let _ = resolve::<CacheConfig>(Some(&path), &[], presets.1);
            let _ = resolve::<TrainConfig>(None, &sets, presets.0);
        });
    }
);
