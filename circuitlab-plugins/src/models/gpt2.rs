//! GPT-2: LayerNorm, learned positions, fused queries, keys and values, a plain MLP.

use circuitlab_core::{Construct, ModelSource, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::hugging_face::ConfigFile;
use super::transformer::{
    AttentionScale, Biases, Description, Family, Layout, MlpForm, NormForm, NormKind, Place, Position, Site, Transformer,
};

/// A folder with a GPT-2 model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Gpt2Config(pub ModelSource);

register!(model "gpt2" => Gpt2Config, "GPT-2 of any size, and others of its architecture");

impl Construct for Gpt2Config {
    type Output = Transformer;

    fn construct(&self) -> Result<Transformer> {
        Transformer::open(&self.0, &FAMILY)
    }
}

const FAMILY: Family = Family { name: "gpt2", prefix: "transformer.", describe, place };

/// The keys of `config.json` that change what the model computes. `reorder_and_upcast_attn` does not: it is about the
/// rounding of 16-bit scores, and the softmax here is never made in 16 bits.
#[derive(Debug, Deserialize)]
struct Keys {
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    n_positions: usize,
    vocab_size: usize,
    #[serde(default = "gelu")]
    activation_function: String,
    #[serde(default = "eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn gelu() -> String {
    "gelu_new".to_owned()
}

fn eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

fn describe(config: &ConfigFile) -> Result<Description> {
    config.refuse("add_cross_attention", &[json!(false)])?;
    let keys: Keys = config.keys()?;
    let (width, heads) = (keys.n_embd, keys.n_head);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(config.wrong(format!("{heads} heads do not divide the width {width}")));
    }
    let d_head = width / heads;
    let factor = if keys.scale_attn_weights { (d_head as f64).powf(-0.5) } else { 1.0 };
    Ok(Description {
        layers: keys.n_layer,
        d_model: width,
        heads,
        kv_heads: heads,
        d_head,
        d_mlp: keys.n_inner.unwrap_or_else(|| width.saturating_mul(4)),
        vocabulary: keys.vocab_size,
        context: keys.n_positions,
        norm: NormForm { kind: NormKind::Layer, eps: keys.layer_norm_epsilon },
        position: Position::Learned,
        scale: AttentionScale { factor, by_layer: keys.scale_attn_by_inverse_layer_idx },
        mlp: MlpForm { gated: false, activation: config.activation("activation_function", &keys.activation_function)? },
        biases: Biases { qkv: true, output: true, mlp: true },
        tied: keys.tie_word_embeddings,
        ..Description::default()
    })
}

fn place(site: Site) -> Option<Place> {
    Some(match site {
        Site::Embedding => Place::plain("wte"),
        Site::Positions => Place::plain("wpe"),
        Site::Norm1(layer) => Place::plain(format!("h.{layer}.ln_1")),
        Site::Query(layer) => fused(layer, 0),
        Site::Key(layer) => fused(layer, 1),
        Site::Value(layer) => fused(layer, 2),
        Site::Output(layer) => Place::transposed(format!("h.{layer}.attn.c_proj")),
        Site::Norm2(layer) => Place::plain(format!("h.{layer}.ln_2")),
        Site::Up(layer) => Place::transposed(format!("h.{layer}.mlp.c_fc")),
        Site::Down(layer) => Place::transposed(format!("h.{layer}.mlp.c_proj")),
        Site::FinalNorm => Place::plain("ln_f"),
        Site::Unembedding => Place::plain("lm_head"),
        Site::QueryNorm(_) | Site::KeyNorm(_) | Site::PostNorm1(_) | Site::Gate(_) | Site::PostNorm2(_) => return None,
    })
}

/// Queries, keys and values stand side by side in one tensor.
fn fused(layer: usize, part: usize) -> Place {
    Place { module: format!("h.{layer}.attn.c_attn"), layout: Layout::Transposed { part, parts: 3 } }
}
