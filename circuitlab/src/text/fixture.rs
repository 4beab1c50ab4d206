//! A model's facts, for tests.

use circuitlab_core::ModelInfo;

pub(crate) fn model() -> ModelInfo {
    ModelInfo {
        family: "test".to_owned(),
        name: "test".to_owned(),
        fingerprint: String::new(),
        layers: 1,
        d_model: 1,
        heads: 1,
        kv_heads: 1,
        d_head: 1,
        d_mlp: 1,
        vocabulary: 1000,
        context: 1000,
        parameters: 0,
        bos: Some(99),
        eos: Some(98),
        stops: vec![98],
    }
}
