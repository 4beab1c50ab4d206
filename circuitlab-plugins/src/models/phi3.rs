//! Phi-3 and Phi-4: Llama with fused maps and, in longer variants, rotary frequencies stretched pair by pair.

use circuitlab_core::Result;

use super::decoder::{self, DecoderKeys, Defaults, family, windowed};
use super::hugging_face::ConfigFile;
use super::rope::RopeKeys;
use super::transformer::{Biases, Description, Layout, Place, Position, Site};

family!("phi3", Phi3Config, "Phi-3, Phi-3.5 and Phi-4 (dense)", describe = describe, place = place);

fn describe(config: &ConfigFile) -> Result<Description> {
    let (keys, rope): (DecoderKeys, RopeKeys) = (config.keys()?, config.keys()?);
    let defaults = Defaults { eps: 1e-5, ..Defaults::LLAMA };
    let position = Position::Rotary(rope.partial(config, keys.rope_of(config, defaults)?, 1.0)?);
    let layer_forms = windowed(&keys.slides(config, |_| true)?, keys.sliding_window);
    let biases = Biases { qkv: false, output: false, mlp: false };
    Ok(Description { biases, layer_forms, ..keys.with_position(config, defaults, position)? })
}

fn place(site: Site) -> Option<Place> {
    let stacked = |module: String, sites: Vec<Site>| Some(Place { module, layout: Layout::Stacked(sites) });
    match site {
        Site::Query(layer) | Site::Key(layer) | Site::Value(layer) => {
            stacked(format!("layers.{layer}.self_attn.qkv_proj"), vec![Site::Query(layer), Site::Key(layer), Site::Value(layer)])
        }
        Site::Gate(layer) | Site::Up(layer) => {
            stacked(format!("layers.{layer}.mlp.gate_up_proj"), vec![Site::Gate(layer), Site::Up(layer)])
        }
        Site::QueryNorm(_) | Site::KeyNorm(_) => None,
        _ => decoder::place(site),
    }
}
