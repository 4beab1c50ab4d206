//! `starcoder2`: LayerNorm, rotary positions, grouped queries, a plain MLP.

use circuitlab_core::{Construct, ModelSource, Result, register};
use circuitlab_plugins::models::hugging_face::ConfigFile;
use circuitlab_plugins::models::rope::RopeKeys;
use circuitlab_plugins::models::transformer::{
    AttentionScale, Biases, Description, Family, MlpForm, NormForm, NormKind, Place, Position, Site, Transformer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A folder with a Starcoder2 model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Starcoder2Config(pub ModelSource);

register!(model "starcoder2" => Starcoder2Config, "Starcoder2 of any size, up to the length of its attention window");
circuitlab_core::export_plugin!();

impl Construct for Starcoder2Config {
    type Output = Transformer;

    fn construct(&self) -> Result<Transformer> {
        Transformer::open(&self.0, &FAMILY)
    }
}

const FAMILY: Family = Family { name: "starcoder2", prefix: "model.", describe, place };

/// The keys of `config.json` that change what the model computes, with the defaults that files leave out.
#[derive(Debug, Deserialize)]
struct Keys {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "two")]
    num_key_value_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "eps")]
    norm_epsilon: f64,
    #[serde(default = "yes")]
    use_bias: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn two() -> usize {
    2
}

fn gelu() -> String {
    "gelu_pytorch_tanh".to_owned()
}

fn eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

fn describe(config: &ConfigFile) -> Result<Description> {
    config.refuse("partial_rotary_factor", &[json!(1.0), json!(1)])?;
    let keys: Keys = config.keys()?;
    let rope: RopeKeys = config.keys()?;
    let (width, heads) = (keys.hidden_size, keys.num_attention_heads);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(config.wrong(format!("{heads} heads do not divide the width {width}")));
    }
    let window = keys.sliding_window.unwrap_or(usize::MAX);
    if window == 0 {
        return Err(config.wrong("`sliding_window` is 0; expected 1 or more, or null for none"));
    }
    let d_head = width / heads;
    Ok(Description {
        layers: keys.num_hidden_layers,
        d_model: width,
        heads,
        kv_heads: keys.num_key_value_heads,
        d_head,
        d_mlp: keys.intermediate_size,
        vocabulary: keys.vocab_size,
        // A token sees as many tokens as the window has places, itself included: up to there the window changes nothing.
        context: keys.max_position_embeddings.min(window),
        norm: NormForm { kind: NormKind::Layer, eps: keys.norm_epsilon },
        position: Position::Rotary(rope.form(config, d_head, keys.max_position_embeddings)?),
        scale: AttentionScale { factor: (d_head as f64).powf(-0.5), by_layer: false },
        mlp: MlpForm { gated: false, activation: config.activation("hidden_act", &keys.hidden_act)? },
        biases: Biases { qkv: keys.use_bias, output: keys.use_bias, mlp: keys.use_bias },
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
        Site::Up(layer) => format!("layers.{layer}.mlp.c_fc"),
        Site::Down(layer) => format!("layers.{layer}.mlp.c_proj"),
        Site::FinalNorm => "norm".to_owned(),
        Site::Unembedding => "lm_head".to_owned(),
        // Learned positions and gates: this family has neither.
        _ => return None,
    };
    Some(Place::plain(module))
}
