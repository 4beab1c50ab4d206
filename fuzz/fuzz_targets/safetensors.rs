//! Any bytes as a safetensors file.
#![no_main]

use std::fs;

use circuitlab_core::tch::{Device, Kind, Tensor};
use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_fuzz::{folder, limited, put, seed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        let path = folder().join("seed.safetensors");
        let of = |name: &str, kind, shape: &[i64]| (name.to_owned(), Tensor::zeros(shape, (kind, Device::Cpu)));
        let all = [of("a", Kind::Float, &[2, 3]), of("b", Kind::BFloat16, &[4]), of("c", Kind::Int64, &[]), of("d", Kind::Half, &[0, 7])];
        tensors::write(&path, &all).expect("writes");
        seed("all", &fs::read(&path).expect("was written"));
    },
    |bytes: &[u8]| {
        let path = put("file.safetensors", bytes);
        limited(bytes.len(), || {
            let Ok(file) = TensorFile::open(&path) else { return };
            for name in file.names().expect("was read before") {
                let _ = (file.raw(&name), file.dtype(&name), file.tensor(&name, Some(Kind::Float), Device::Cpu));
            }
        });
    }
);
