//! Llama: RMSNorm, rotary positions, grouped queries, a gated MLP.

use circuitlab_core::{Construct, ModelSource, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::hugging_face::ConfigFile;
use super::rope::RopeKeys;
use super::transformer::{AttentionScale, Biases, Description, Family, MlpForm, NormForm, NormKind, Place, Position, Site, Transformer};

/// A folder with a Llama model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct LlamaConfig(pub ModelSource);

register!(model "llama" => LlamaConfig, "Llama 2 and 3, TinyLlama, SmolLM and others of their architecture");

impl Construct for LlamaConfig {
    type Output = Transformer;

    fn construct(&self) -> Result<Transformer> {
        Transformer::open(&self.0, &FAMILY)
    }
}

const FAMILY: Family = Family { name: "llama", prefix: "model.", describe, place };

/// The keys of `config.json` that change what the model computes.
#[derive(Debug, Deserialize)]
struct Keys {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
}

fn silu() -> String {
    "silu".to_owned()
}

fn eps() -> f64 {
    1e-6
}

fn describe(config: &ConfigFile) -> Result<Description> {
    config.refuse("partial_rotary_factor", &[json!(1.0), json!(1)])?;
    let keys: Keys = config.keys()?;
    let rope: RopeKeys = config.keys()?;
    let heads = keys.num_attention_heads;
    let d_head = match keys.head_dim {
        Some(width) => width,
        None if heads > 0 && keys.hidden_size.is_multiple_of(heads) => keys.hidden_size / heads,
        None => {
            return Err(config.wrong(format!("{heads} heads do not divide the width {}, and there is no `head_dim`", keys.hidden_size)));
        }
    };
    Ok(Description {
        layers: keys.num_hidden_layers,
        d_model: keys.hidden_size,
        heads,
        kv_heads: keys.num_key_value_heads.unwrap_or(heads),
        d_head,
        d_mlp: keys.intermediate_size,
        vocabulary: keys.vocab_size,
        context: keys.max_position_embeddings,
        norm: NormForm { kind: NormKind::Rms, eps: keys.rms_norm_eps },
        position: Position::Rotary(rope.form(config, d_head, keys.max_position_embeddings)?),
        scale: AttentionScale { factor: (d_head as f64).powf(-0.5), by_layer: false },
        mlp: MlpForm { gated: true, activation: config.activation("hidden_act", &keys.hidden_act)? },
        biases: Biases { qkv: keys.attention_bias, output: keys.attention_bias, mlp: keys.mlp_bias },
        tied: keys.tie_word_embeddings,
    })
}

fn place(site: Site) -> Option<Place> {
    let module = match site {
        Site::Embedding => "embed_tokens".to_owned(),
        Site::Norm1(layer) => format!("layers.{layer}.input_layernorm"),
        Site::Query(layer) => format!("layers.{layer}.self_attn.q_proj"),
        Site::Key(layer) => format!("layers.{layer}.self_attn.k_proj"),
        Site::Value(layer) => format!("layers.{layer}.self_attn.v_proj"),
        Site::Output(layer) => format!("layers.{layer}.self_attn.o_proj"),
        Site::Norm2(layer) => format!("layers.{layer}.post_attention_layernorm"),
        Site::Gate(layer) => format!("layers.{layer}.mlp.gate_proj"),
        Site::Up(layer) => format!("layers.{layer}.mlp.up_proj"),
        Site::Down(layer) => format!("layers.{layer}.mlp.down_proj"),
        Site::FinalNorm => "norm".to_owned(),
        Site::Unembedding => "lm_head".to_owned(),
        Site::Positions => return None,
    };
    Some(Place::plain(module))
}
