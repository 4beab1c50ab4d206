//! Mistral: Llama with a window over all layers.

use circuitlab_core::Result;

use super::decoder::{DecoderKeys, Defaults, family, place, windowed};
use super::hugging_face::ConfigFile;
use super::transformer::Description;

family!("mistral", MistralConfig, "Mistral 7B, Ministral and others of their architecture", describe = describe, place = place);

fn describe(config: &ConfigFile) -> Result<Description> {
    let keys: DecoderKeys = config.keys()?;
    let window = config.or_unless_null("sliding_window", keys.sliding_window, 4096);
    let slides = keys.slides(config, |_| true)?;
    Ok(Description { layer_forms: windowed(&slides, window), ..keys.llama(config, Defaults::LLAMA)? })
}
