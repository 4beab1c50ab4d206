//! Qwen 2 and 2.5: Llama with biases on queries, keys and values. Qwen 3: with a norm over each query and key instead.

use circuitlab_core::Result;
use serde::Deserialize;

use super::decoder::{DecoderKeys, Defaults, place, windowed};
use super::hugging_face::ConfigFile;
use super::transformer::{Biases, Description, LayerForm, QueryKeyNorm};

/// The page of Qwen 2.
pub mod two {
    use super::super::decoder::family;
    use super::{describe2, place};

    family!("qwen2", Qwen2Config, "Qwen 2 and 2.5 (dense)", describe = describe2, place = place);
}

/// The page of Qwen 3.
pub mod three {
    use super::super::decoder::family;
    use super::{describe3, place};

    family!("qwen3", Qwen3Config, "Qwen 3 (dense)", describe = describe3, place = place);
}

/// The keys that are Qwen's own.
#[derive(Debug, Deserialize)]
struct WindowKeys {
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "max_window_layers")]
    max_window_layers: usize,
}

fn max_window_layers() -> usize {
    28
}

fn layer_forms(config: &ConfigFile, keys: &DecoderKeys) -> Result<Vec<LayerForm>> {
    let own: WindowKeys = config.keys()?;
    let window = config.or_unless_null("sliding_window", keys.sliding_window, 4096).filter(|_| own.use_sliding_window);
    Ok(windowed(&keys.slides(config, |layer| layer >= own.max_window_layers)?, window))
}

fn describe2(config: &ConfigFile) -> Result<Description> {
    let keys: DecoderKeys = config.keys()?;
    let biases = Biases { qkv: true, output: false, mlp: false };
    Ok(Description { biases, layer_forms: layer_forms(config, &keys)?, ..keys.llama(config, Defaults::LLAMA)? })
}

fn describe3(config: &ConfigFile) -> Result<Description> {
    let keys: DecoderKeys = config.keys()?;
    let plain = keys.llama(config, Defaults { d_head: Some(128), ..Defaults::LLAMA })?;
    let biases = Biases { mlp: false, ..plain.biases };
    let layer_forms = layer_forms(config, &keys)?;
    Ok(Description { biases, query_key_norm: Some(QueryKeyNorm::EachHead), layer_forms, ..plain })
}
