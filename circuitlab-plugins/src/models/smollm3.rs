//! `SmolLM` 3: Llama in which every fourth layer has no positions at all.

use circuitlab_core::Result;
use serde::Deserialize;

use super::decoder::{DecoderKeys, Defaults, family, place};
use super::hugging_face::ConfigFile;
use super::transformer::{Description, LayerForm, LayerPosition};

family!("smollm3", SmolLm3Config, "SmolLM 3 (SmolLM 1 and 2 are of the family `llama`)", describe = describe, place = place);

/// The keys that are `SmolLM` 3's own.
#[derive(Debug, Deserialize)]
struct Keys {
    /// 1 where a layer has rotary positions, 0 where it has none.
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
}

fn describe(config: &ConfigFile) -> Result<Description> {
    let (keys, own): (DecoderKeys, Keys) = (config.keys()?, config.keys()?);
    let plain = keys.llama(config, Defaults { tied: true, theta: 2_000_000.0, ..Defaults::LLAMA })?;
    let every = own.no_rope_layer_interval.unwrap_or(4).max(1);
    let listed = own.no_rope_layers.as_ref();
    if let Some(list) = listed.filter(|list| list.len() != keys.num_hidden_layers) {
        let message = format!("`no_rope_layers` has {} entries; expected one for each of {} layers", list.len(), keys.num_hidden_layers);
        return Err(config.wrong(message));
    }
    let rotates = |layer: usize| listed.map_or(!(layer + 1).is_multiple_of(every), |list| list[layer] != 0);
    let window = keys.sliding_window.filter(|_| own.use_sliding_window);
    let slides = keys.slides(config, |layer| window.is_some() && !rotates(layer))?;
    let form = |(layer, slides): (usize, &bool)| LayerForm {
        window: window.filter(|_| *slides),
        position: if rotates(layer) { LayerPosition::Global } else { LayerPosition::None },
    };
    Ok(Description { layer_forms: slides.iter().enumerate().map(form).collect(), ..plain })
}
