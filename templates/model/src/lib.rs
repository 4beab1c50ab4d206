//! `starcoder2`: LayerNorm, rotary positions, grouped queries, a plain MLP.

use circuitlab_core::{Construct, ModelSource, Result, register};
use circuitlab_plugins::models::hugging_face::ConfigFile;
use circuitlab_plugins::models::rope::{RopeKeys, RopeOf};
use circuitlab_plugins::models::transformer::{
    AttentionScale, Biases, Description, Family, LayerForm, LayerPosition, MlpForm, NormForm, NormKind, Place, Position, Site, Transformer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A folder with a Starcoder2 model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Starcoder2Config(pub ModelSource);

register!(model "starcoder2" => Starcoder2Config, "Starcoder2 of any size");
circuitlab_core::export_plugin!();

impl Construct for Starcoder2Config {
    type Output = Transformer;

    fn construct(&self) -> Result<Transformer> {
        Transformer::open(&self.0, &FAMILY)
    }
}

const FAMILY: Family = Family { name: "starcoder2", prefix: "model.", describe, place };

/// More than any model has; a number from a file is not trusted with memory.
const MOST_LAYERS: usize = 1 << 16;

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
    let keys: Keys = config.keys()?;
    let rope: RopeKeys = config.keys()?;
    let (width, heads) = (keys.hidden_size, keys.num_attention_heads);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(config.wrong(format!("{heads} heads do not divide the width {width}")));
    }
    if keys.num_hidden_layers > MOST_LAYERS {
        return Err(config.wrong(format!("`num_hidden_layers` is {}; expected at most {MOST_LAYERS}", keys.num_hidden_layers)));
    }
    let d_head = width / heads;
    let of = RopeOf { d_head, context: keys.max_position_embeddings, default_theta: 10_000.0 };
    Ok(Description {
        layers: keys.num_hidden_layers,
        d_model: width,
        heads,
        kv_heads: keys.num_key_value_heads,
        d_head,
        d_mlp: keys.intermediate_size,
        vocabulary: keys.vocab_size,
        context: keys.max_position_embeddings,
        norm: NormForm { kind: NormKind::Layer, eps: keys.norm_epsilon },
        position: Position::Rotary(rope.form(config, of)?),
        scale: AttentionScale { factor: (d_head as f64).powf(-0.5), by_layer: false },
        mlp: MlpForm { gated: false, activation: config.activation("hidden_act", &keys.hidden_act)? },
        biases: Biases { qkv: keys.use_bias, output: keys.use_bias, mlp: keys.use_bias },
        tied: keys.tie_word_embeddings,
        layer_forms: vec![LayerForm { window: keys.sliding_window, position: LayerPosition::Global }; keys.num_hidden_layers],
        ..Description::default()
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
