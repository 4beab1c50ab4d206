//! GPT-NeoX, whose models are called Pythia: LayerNorm, rotary positions on a part of each head, fused queries, keys and values,
//! attention and MLP side by side.

use circuitlab_core::{Construct, ModelSource, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::hugging_face::ConfigFile;
use super::rope::{RopeKeys, RopeOf};
use super::transformer::{
    AttentionScale, Biases, BlockForm, Description, Family, Layout, MlpForm, NormForm, NormKind, Place, Position, Site, Transformer,
};

/// A folder with a model of the family `gpt_neox`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct GptNeoxConfig(pub ModelSource);

register!(model "gpt_neox" => GptNeoxConfig, "Pythia and other GPT-NeoX models");

impl Construct for GptNeoxConfig {
    type Output = Transformer;

    fn construct(&self) -> Result<Transformer> {
        Transformer::open(&self.0, &FAMILY)
    }
}

const FAMILY: Family = Family { name: "gpt_neox", prefix: "gpt_neox.", describe, place };

/// The keys of `config.json` that change what the model computes.
#[derive(Debug, Deserialize)]
struct Keys {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "eps")]
    layer_norm_eps: f64,
    #[serde(default = "yes")]
    use_parallel_residual: bool,
    #[serde(default = "yes")]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    /// The older dialect's names of what `rope_parameters` holds.
    rotary_pct: Option<f64>,
    rotary_emb_base: Option<f64>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

fn describe(config: &ConfigFile) -> Result<Description> {
    let (keys, rope): (Keys, RopeKeys) = (config.keys()?, config.keys()?);
    let (width, heads) = (keys.hidden_size, keys.num_attention_heads);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(config.wrong(format!("{heads} heads do not divide the width {width}")));
    }
    let d_head = width / heads;
    let of = RopeOf { d_head, context: keys.max_position_embeddings, default_theta: keys.rotary_emb_base.unwrap_or(10_000.0) };
    Ok(Description {
        layers: keys.num_hidden_layers,
        d_model: width,
        heads,
        kv_heads: heads,
        d_head,
        d_mlp: keys.intermediate_size,
        vocabulary: keys.vocab_size,
        context: keys.max_position_embeddings,
        norm: NormForm { kind: NormKind::Layer, eps: keys.layer_norm_eps },
        position: Position::Rotary(rope.partial(config, of, keys.rotary_pct.unwrap_or(0.25))?),
        scale: AttentionScale { factor: (d_head as f64).powf(-0.5), by_layer: false },
        mlp: MlpForm { gated: false, activation: config.activation("hidden_act", &keys.hidden_act)? },
        biases: Biases { qkv: keys.attention_bias, output: keys.attention_bias, mlp: true },
        tied: keys.tie_word_embeddings,
        block: if keys.use_parallel_residual { BlockForm::Parallel } else { BlockForm::Serial },
        ..Description::default()
    })
}

fn place(site: Site) -> Option<Place> {
    Some(match site {
        Site::Embedding => Place::plain("embed_in"),
        Site::Norm1(layer) => Place::plain(format!("layers.{layer}.input_layernorm")),
        Site::Query(layer) => fused(layer, 0),
        Site::Key(layer) => fused(layer, 1),
        Site::Value(layer) => fused(layer, 2),
        Site::Output(layer) => Place::plain(format!("layers.{layer}.attention.dense")),
        Site::Norm2(layer) => Place::plain(format!("layers.{layer}.post_attention_layernorm")),
        Site::Up(layer) => Place::plain(format!("layers.{layer}.mlp.dense_h_to_4h")),
        Site::Down(layer) => Place::plain(format!("layers.{layer}.mlp.dense_4h_to_h")),
        Site::FinalNorm => Place::plain("final_layer_norm"),
        Site::Unembedding => Place::plain("embed_out"),
        Site::Positions | Site::QueryNorm(_) | Site::KeyNorm(_) | Site::PostNorm1(_) | Site::Gate(_) | Site::PostNorm2(_) => return None,
    })
}

/// Queries, keys and values of each head stand together.
fn fused(layer: usize, part: usize) -> Place {
    Place { module: format!("layers.{layer}.attention.query_key_value"), layout: Layout::ByHead { part, parts: 3 } }
}
