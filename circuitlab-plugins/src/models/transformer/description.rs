//! What kind of transformer a folder holds: plain data that a family's page fills in from `config.json`.

use circuitlab_core::{Error, Result};
use serde::Serialize;

/// No size in a description may exceed this, so that products of two of them fit any integer.
const LARGEST: usize = 1 << 28;

/// A decoder-only transformer with serial blocks: norm, attention, add, norm, MLP, add.
///
/// Its JSON is part of a model's fingerprint: a new field is skipped in serialization while it has its old meaning.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads in a block.
    pub heads: usize,
    /// Key and value heads in a block; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Hidden width of the MLP.
    pub d_mlp: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest context, in tokens.
    pub context: usize,
    /// The norm before attention, before the MLP and at the end.
    pub norm: NormForm,
    /// How positions enter.
    pub position: Position,
    /// How attention scores are scaled.
    pub scale: AttentionScale,
    /// The MLP.
    pub mlp: MlpForm,
    /// Which linear maps have a bias.
    pub biases: Biases,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
}

/// A norm over the last axis.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NormForm {
    /// The formula.
    pub kind: NormKind,
    /// Added to the mean square before the root.
    pub eps: f64,
}

/// The formula of a norm; `g` is its gain, `b` its bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * g`.
    Rms,
    /// `c / sqrt(mean(c^2) + eps) * g + b` with `c = x - mean(x)`.
    Layer,
}

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// A learned vector for each position is added to the embedding.
    Learned,
    /// Queries and keys are rotated by angles that grow with the position.
    Rotary(RotaryForm),
}

/// Rotary embedding: pair `i` of a head's first `dims` entries turns by `position * theta^(-2i / dims)`, rescaled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RotaryForm {
    /// The base.
    pub theta: f64,
    /// How many entries of a head are rotated; even. The pairs are `(i, i + dims / 2)`.
    pub dims: usize,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RotaryScaling,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: wavelengths above `original / low` are divided by `factor`, those below `original / high` are kept, and
    /// those between are mixed.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `low_freq_factor`.
        low: f64,
        /// `high_freq_factor`.
        high: f64,
        /// The context length of the first training, in tokens.
        original: f64,
    },
}

/// How attention scores are scaled before the softmax.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionScale {
    /// The factor, usually `1 / sqrt(d_head)`.
    pub factor: f64,
    /// Whether the scores of block `l` are also divided by `l + 1`.
    pub by_layer: bool,
}

impl AttentionScale {
    /// The factor of block `layer`.
    pub fn of(self, layer: usize) -> f64 {
        if self.by_layer { self.factor / (layer + 1) as f64 } else { self.factor }
    }
}

/// The MLP's formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MlpForm {
    /// `down(act(gate(x)) * up(x))` when set, `down(act(up(x)))` otherwise.
    pub gated: bool,
    /// `act`.
    pub activation: Activation,
}

/// A pointwise function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, with the normal distribution function itself.
    GeluExact,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Which linear maps have a bias. LayerNorm's own is not meant: it always has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention's output.
    pub output: bool,
    /// All maps of the MLP.
    pub mlp: bool,
}

impl Description {
    /// Checks that the numbers make a transformer.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("layers", self.layers),
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("d_head", self.d_head),
            ("d_mlp", self.d_mlp),
            ("vocabulary", self.vocabulary),
            ("context", self.context),
        ];
        for (name, size) in sizes {
            ensure((1..=LARGEST).contains(&size), || format!("{name} is {size}; expected 1 to {LARGEST}"))?;
        }
        ensure(self.heads.is_multiple_of(self.kv_heads), || {
            format!("{} key and value heads do not divide {} query heads", self.kv_heads, self.heads)
        })?;
        ensure(self.norm.eps.is_finite() && self.norm.eps >= 0.0, || {
            format!("the norm's epsilon is {}; expected 0 or more", self.norm.eps)
        })?;
        ensure(self.scale.factor.is_finite(), || format!("the attention scale is {}", self.scale.factor))?;
        match self.position {
            Position::Learned => Ok(()),
            Position::Rotary(rotary) => rotary.check(self.d_head),
        }
    }
}

impl RotaryForm {
    fn check(&self, d_head: usize) -> Result<()> {
        ensure(self.dims.is_multiple_of(2) && (2..=d_head).contains(&self.dims), || {
            format!("{} rotary dimensions of a head of width {d_head}; expected an even number up to that width", self.dims)
        })?;
        ensure(positive(self.theta), || format!("the rotary base is {}; expected more than 0", self.theta))?;
        match self.scaling {
            RotaryScaling::None => Ok(()),
            RotaryScaling::Linear { factor } => ensure(positive(factor), || format!("the rotary factor is {factor}; expected more than 0")),
            RotaryScaling::Llama3 { factor, low, high, original } => {
                ensure([factor, low, high, original].into_iter().all(positive) && low < high, || {
                    format!(
                        "llama3 rotary scaling with factor {factor}, frequency factors {low} to {high}, original context {original}; \
                         expected numbers above 0 with the low frequency factor below the high one"
                    )
                })
            }
        }
    }
}

fn positive(number: f64) -> bool {
    number.is_finite() && number > 0.0
}

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Invalid(message())) }
}
