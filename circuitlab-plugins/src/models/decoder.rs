//! What the families after Llama's pattern have in common: the keys of their `config.json` and the names of their tensors.

use circuitlab_core::Result;
use serde::Deserialize;

use super::hugging_face::ConfigFile;
use super::rope::{RopeKeys, RopeOf};
use super::transformer::{
    AttentionScale, Biases, Description, LayerForm, LayerPosition, MlpForm, NormForm, NormKind, Place, Position, Site,
};

/// The keys that change what such a model computes.
#[derive(Debug, Deserialize)]
pub struct DecoderKeys {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) intermediate_size: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) hidden_act: Option<String>,
    pub(super) hidden_activation: Option<String>,
    pub(super) rms_norm_eps: Option<f64>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) sliding_window: Option<usize>,
    pub(super) layer_types: Option<Vec<String>>,
}

/// What a file may leave out, as the family has it.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub(super) activation: &'static str,
    pub(super) eps: f64,
    pub(super) tied: bool,
    /// Width of a head; without it, heads share the model's width.
    pub(super) d_head: Option<usize>,
    pub(super) theta: f64,
}

impl Defaults {
    /// Llama's.
    pub const LLAMA: Self = Self { activation: "silu", eps: 1e-6, tied: false, d_head: None, theta: 10_000.0 };
}

impl DecoderKeys {
    /// Width of a head.
    pub(super) fn d_head(&self, config: &ConfigFile, defaults: Defaults) -> Result<usize> {
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        match self.head_dim.or(defaults.d_head) {
            Some(width) => Ok(width),
            None if heads > 0 && width.is_multiple_of(heads) => Ok(width / heads),
            None => Err(config.wrong(format!("{heads} heads do not divide the width {width}, and there is no `head_dim`"))),
        }
    }

    /// What the rotary embedding belongs to.
    pub(super) fn rope_of(&self, config: &ConfigFile, defaults: Defaults) -> Result<RopeOf> {
        let d_head = self.d_head(config, defaults)?;
        Ok(RopeOf { d_head, context: self.max_position_embeddings, default_theta: defaults.theta })
    }

    /// A Llama of these sizes: the pages of other families change what is different in theirs.
    ///
    /// # Errors
    /// Heads that do not divide the width, unknown activations, and rotary settings that make no sense.
    pub fn llama(&self, config: &ConfigFile, defaults: Defaults) -> Result<Description> {
        let rope: RopeKeys = config.keys()?;
        let position = Position::Rotary(rope.form(config, self.rope_of(config, defaults)?)?);
        self.with_position(config, defaults, position)
    }

    /// The same with a rotary embedding that the family's page has read.
    pub(super) fn with_position(&self, config: &ConfigFile, defaults: Defaults, position: Position) -> Result<Description> {
        let d_head = self.d_head(config, defaults)?;
        // Gemma's files name both, and the second is the one that counts.
        let (key, activation) = match (&self.hidden_activation, &self.hidden_act) {
            (Some(name), _) => ("hidden_activation", name.as_str()),
            (None, Some(name)) => ("hidden_act", name.as_str()),
            (None, None) => ("hidden_act", defaults.activation),
        };
        Ok(Description {
            layers: self.num_hidden_layers,
            d_model: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            d_head,
            d_mlp: self.intermediate_size,
            vocabulary: self.vocab_size,
            context: self.max_position_embeddings,
            norm: NormForm { kind: NormKind::Rms, eps: self.rms_norm_eps.unwrap_or(defaults.eps) },
            position,
            scale: AttentionScale { factor: (d_head as f64).powf(-0.5), by_layer: false },
            mlp: MlpForm { gated: true, activation: config.activation(key, activation)? },
            biases: Biases { qkv: self.attention_bias, output: self.attention_bias, mlp: self.mlp_bias },
            tied: self.tie_word_embeddings.unwrap_or(defaults.tied),
            ..Description::default()
        })
    }

    /// Whether each layer has a window, by `layer_types` or, where the file has none, by `otherwise` of the layer's number.
    ///
    /// # Errors
    /// A list of another length than the model's, and types that are not known.
    pub(super) fn slides(&self, config: &ConfigFile, otherwise: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(types) = &self.layer_types else {
            // A hostile number of layers is refused when the description is checked; no memory goes to it here.
            return Ok((0..self.num_hidden_layers.min(MOST_LAYERS)).map(otherwise).collect());
        };
        if types.len() != self.num_hidden_layers {
            return Err(config.wrong(format!(
                "`layer_types` has {} entries; expected one for each of {} layers",
                types.len(),
                self.num_hidden_layers
            )));
        }
        let slides = |name: &String| match name.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            _ => Err(config.wrong(format!("unknown layer type `{name}`; known: full_attention, sliding_attention"))),
        };
        types.iter().map(slides).collect()
    }
}

/// More layers than any model has, by far.
const MOST_LAYERS: usize = 1 << 16;

/// The forms of layers of which some see a window only.
pub(super) fn windowed(slides: &[bool], window: Option<usize>) -> Vec<LayerForm> {
    let Some(window) = window.filter(|_| slides.contains(&true)) else { return Vec::new() };
    slides.iter().map(|slides| LayerForm { window: slides.then_some(window), position: LayerPosition::Global }).collect()
}

/// The names of Llama's tensors.
pub fn place(site: Site) -> Option<Place> {
    let module = match site {
        Site::Embedding => "embed_tokens".to_owned(),
        Site::Norm1(layer) => format!("layers.{layer}.input_layernorm"),
        Site::Query(layer) => format!("layers.{layer}.self_attn.q_proj"),
        Site::Key(layer) => format!("layers.{layer}.self_attn.k_proj"),
        Site::Value(layer) => format!("layers.{layer}.self_attn.v_proj"),
        Site::QueryNorm(layer) => format!("layers.{layer}.self_attn.q_norm"),
        Site::KeyNorm(layer) => format!("layers.{layer}.self_attn.k_norm"),
        Site::Output(layer) => format!("layers.{layer}.self_attn.o_proj"),
        Site::Norm2(layer) => format!("layers.{layer}.post_attention_layernorm"),
        Site::Gate(layer) => format!("layers.{layer}.mlp.gate_proj"),
        Site::Up(layer) => format!("layers.{layer}.mlp.up_proj"),
        Site::Down(layer) => format!("layers.{layer}.mlp.down_proj"),
        Site::FinalNorm => "norm".to_owned(),
        Site::Unembedding => "lm_head".to_owned(),
        Site::Positions | Site::PostNorm1(_) | Site::PostNorm2(_) => return None,
    };
    Some(Place::plain(module))
}

/// The names where what Llama calls `post_attention_layernorm` stands after attention, and the MLP's norms have names of their own.
pub(super) fn place_around(site: Site) -> Option<Place> {
    let module = match site {
        Site::PostNorm1(layer) => format!("layers.{layer}.post_attention_layernorm"),
        Site::Norm2(layer) => format!("layers.{layer}.pre_feedforward_layernorm"),
        Site::PostNorm2(layer) => format!("layers.{layer}.post_feedforward_layernorm"),
        _ => return place(site),
    };
    Some(Place::plain(module))
}

/// A family's page in a few lines: its config struct, its registration and how it opens a folder.
macro_rules! family {
    ($name:literal, $config:ident, $summary:literal, describe = $describe:path, place = $place:path) => {
        #[doc = concat!("A folder with a model of the family `", $name, "`.")]
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(transparent)]
        pub struct $config(pub circuitlab_core::ModelSource);

        register!(model $name => $config, $summary);

        impl circuitlab_core::Construct for $config {
            type Output = crate::models::transformer::Transformer;

            fn construct(&self) -> circuitlab_core::Result<Self::Output> {
                crate::models::transformer::Transformer::open(&self.0, &FAMILY)
            }
        }

        const FAMILY: crate::models::transformer::Family =
            crate::models::transformer::Family { name: $name, prefix: "model.", describe: $describe, place: $place };
    };
}
pub(super) use family;
