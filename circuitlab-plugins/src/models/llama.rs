//! Llama: RMSNorm, rotary positions, grouped queries, a gated MLP.

use circuitlab_core::Result;

use super::decoder::{DecoderKeys, Defaults, family, place};
use super::hugging_face::ConfigFile;
use super::transformer::Description;

family!("llama", LlamaConfig, "Llama 2 and 3, TinyLlama, SmolLM and others of their architecture", describe = describe, place = place);

fn describe(config: &ConfigFile) -> Result<Description> {
    config.keys::<DecoderKeys>()?.llama(config, Defaults::LLAMA)
}
