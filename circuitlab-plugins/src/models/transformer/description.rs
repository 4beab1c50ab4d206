//! What kind of transformer a folder holds: plain data that a family's page fills in from `config.json`.

use circuitlab_core::{Error, Result};
use serde::Serialize;

/// No size in a description may exceed this, so that products of two of them fit any integer.
const LARGEST: usize = 1 << 28;

/// A decoder-only transformer.
///
/// A family's page sets the sizes, which are 0 in the default, and whatever differs from a Llama without any special feature.
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
    /// How the parts of a block follow one another.
    #[serde(skip_serializing_if = "is_default")]
    pub block: BlockForm,
    /// Where the norms of a block stand.
    #[serde(skip_serializing_if = "is_default")]
    pub norms: NormPlaces,
    /// The norm of queries and keys before they are rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_key_norm: Option<QueryKeyNorm>,
    /// What is particular to some layers: `[layer]`, or empty where all are alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layer_forms: Vec<LayerForm>,
    /// The rotary embedding of layers that say [`LayerPosition::Local`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_rotary: Option<RotaryForm>,
    /// What embeddings are multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scale: Option<f64>,
    /// Soft caps.
    #[serde(skip_serializing_if = "is_default")]
    pub caps: SoftCaps,
    /// Whether each softmax pattern is multiplied by 1 where the score is above 0 and by 0 elsewhere, without renormalising.
    #[serde(skip_serializing_if = "is_default")]
    pub attention_gate: bool,
}

impl Default for Description {
    fn default() -> Self {
        Self {
            layers: 0,
            d_model: 0,
            heads: 0,
            kv_heads: 0,
            d_head: 0,
            d_mlp: 0,
            vocabulary: 0,
            context: 0,
            norm: NormForm { kind: NormKind::Rms, eps: 1e-6 },
            position: Position::Learned,
            scale: AttentionScale { factor: 1.0, by_layer: false },
            mlp: MlpForm { gated: true, activation: Activation::Silu },
            biases: Biases { qkv: false, output: false, mlp: false },
            tied: false,
            block: BlockForm::Serial,
            norms: NormPlaces::Before,
            query_key_norm: None,
            layer_forms: Vec::new(),
            local_rotary: None,
            embedding_scale: None,
            caps: SoftCaps::default(),
            attention_gate: false,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How attention and MLP follow one another in a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockForm {
    /// The MLP reads what attention has added to.
    #[default]
    Serial,
    /// Both read the block's input, and both add to it.
    Parallel,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormPlaces {
    /// Before attention and before the MLP.
    #[default]
    Before,
    /// After each of them, on what it adds to the residual stream.
    After,
    /// Both.
    Around,
}

impl NormPlaces {
    /// Whether attention and MLP read a normalized stream.
    pub fn before(self) -> bool {
        self != Self::After
    }

    /// Whether what attention and MLP add is normalized.
    pub fn after(self) -> bool {
        self != Self::Before
    }
}

/// What a norm of queries and keys spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QueryKeyNorm {
    /// Each head by itself, with one gain for all: `[d_head]`.
    EachHead,
    /// All heads together: `[heads * d_head]` and `[kv_heads * d_head]`.
    AllHeads,
}

/// What is particular to a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LayerForm {
    /// How many tokens a query sees, its own included. Default: all before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Which positions enter.
    pub position: LayerPosition,
}

/// Which rotary embedding a layer has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerPosition {
    /// The model's.
    #[default]
    Global,
    /// [`Description::local_rotary`].
    Local,
    /// None.
    None,
}

/// `cap * tanh(x / cap)`, where there is a cap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct SoftCaps {
    /// On attention scores, after their scale.
    pub scores: Option<f64>,
    /// On logits.
    pub logits: Option<f64>,
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
    /// `x / sqrt(mean(x^2) + eps) * (1 + g)`: Gemma's.
    RmsPlusOne,
    /// `c / sqrt(mean(c^2) + eps) * g + b` with `c = x - mean(x)`.
    Layer,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// A learned vector for each position is added to the embedding.
    Learned,
    /// Queries and keys are rotated by angles that grow with the position.
    Rotary(RotaryForm),
}

/// Rotary embedding: pair `i` of a head's first entries turns by `position * theta^(-2i / dims)`, rescaled.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RotaryForm {
    /// The base.
    pub theta: f64,
    /// How many entries of a head are rotated; an odd number is rounded up for that, and not in the exponent. The pairs are
    /// `(i, i + pairs)`.
    pub dims: usize,
    /// How frequencies are stretched for longer contexts.
    pub scaling: RotaryScaling,
    /// What cosines and sines are multiplied by.
    #[serde(skip_serializing_if = "is_one")]
    pub amplitude: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
#[expect(clippy::float_cmp, reason = "1 is written as 1")]
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// `YaRN` (Peng and others, 2023): pairs that turn more than `fast` times in the original context keep their frequency, those that
    /// turn less than `slow` times are divided by `factor`, and those between are mixed by their number.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// `beta_fast`.
        fast: f64,
        /// `beta_slow`.
        slow: f64,
        /// The context length of the first training, in tokens.
        original: f64,
        /// Whether the ends of the mixed pairs are whole numbers.
        truncate: bool,
    },
    /// `LongRoPE` (Ding and others, 2024): a divisor for each pair, other ones for contexts that are longer than the original.
    Long {
        /// Divisors up to the original context: `[pairs]`.
        short: Vec<f64>,
        /// Divisors beyond it: `[pairs]`.
        long: Vec<f64>,
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
        if let Position::Rotary(rotary) = &self.position {
            rotary.check(self.d_head)?;
        }
        self.local_rotary.iter().try_for_each(|rotary| rotary.check(self.d_head))?;
        ensure(self.layer_forms.is_empty() || self.layer_forms.len() == self.layers, || {
            format!("{} layers are described; expected {}", self.layer_forms.len(), self.layers)
        })?;
        ensure(self.layer_forms.iter().all(|form| form.window != Some(0)), || {
            "the attention window is 0; expected 1 or more, or none".to_owned()
        })?;
        let caps = [self.caps.scores, self.caps.logits, self.embedding_scale].into_iter().flatten();
        caps.into_iter()
            .try_for_each(|number| ensure(positive(number), || format!("a soft cap or scale is {number}; expected more than 0")))?;
        ensure(self.block == BlockForm::Serial || self.norms == NormPlaces::Before, || {
            "parallel blocks with norms after their parts are not known".to_owned()
        })
    }

    /// What is particular to a layer.
    pub fn layer_form(&self, layer: usize) -> LayerForm {
        self.layer_forms.get(layer).copied().unwrap_or_default()
    }

    /// The rotary embedding of a layer.
    pub fn rotary_of(&self, layer: usize) -> Option<&RotaryForm> {
        match (self.layer_form(layer).position, &self.position) {
            (LayerPosition::Global, Position::Rotary(form)) => Some(form),
            (LayerPosition::Local, _) => self.local_rotary.as_ref(),
            _ => None,
        }
    }
}

impl RotaryForm {
    /// How many pairs of entries are turned.
    pub fn pairs(&self) -> usize {
        self.dims.div_ceil(2)
    }

    fn check(&self, d_head: usize) -> Result<()> {
        ensure(self.dims > 0 && self.dims <= d_head && 2 * self.pairs() <= d_head, || {
            format!("{} rotary dimensions make no pairs in a head of width {d_head}; expected 1 to {d_head}", self.dims)
        })?;
        ensure(positive(self.theta), || format!("the rotary base is {}; expected more than 0", self.theta))?;
        ensure(positive(self.amplitude), || format!("the rotary amplitude is {}; expected more than 0", self.amplitude))?;
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
            RotaryScaling::Yarn { factor, fast, slow, original, .. } => {
                ensure([factor, fast, slow, original].into_iter().all(positive) && slow <= fast && self.theta > 1.0, || {
                    format!(
                        "yarn rotary scaling with factor {factor}, beta {slow} to {fast}, original context {original}, base {}; \
                         expected numbers above 0 with the slow beta not above the fast one, and a base above 1",
                        self.theta
                    )
                })
            }
            RotaryScaling::Long { ref short, ref long, original } => {
                let fits = |divisors: &[f64]| divisors.len() == self.pairs() && divisors.iter().copied().all(positive);
                ensure(fits(short) && fits(long) && positive(original), || {
                    format!(
                        "longrope scaling with {} short and {} long factors and original context {original}; expected {} numbers above 0 \
                         of each",
                        short.len(),
                        long.len(),
                        self.pairs()
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
