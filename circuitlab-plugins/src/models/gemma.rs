//! Gemma 2: norms around attention and MLP, soft caps, a window in every other layer. Gemma 3 (text): norms of queries and keys
//! instead of caps, windows in five layers of six, which have a rotary embedding of their own.

use circuitlab_core::Result;
use serde::Deserialize;

use super::decoder::{DecoderKeys, Defaults, place_around, windowed};
use super::hugging_face::ConfigFile;
use super::rope::RopeKeys;
use super::transformer::{
    AttentionScale, Description, LayerForm, LayerPosition, NormForm, NormKind, NormPlaces, Position, QueryKeyNorm, RotaryForm,
    RotaryScaling, SoftCaps,
};

/// The page of Gemma 2.
pub mod two {
    use super::super::decoder::family;
    use super::{describe2, place_around};

    family!("gemma2", Gemma2Config, "Gemma 2", describe = describe2, place = place_around);
}

/// The page of Gemma 3's text models.
pub mod three {
    use super::super::decoder::family;
    use super::{describe3, place_around};

    family!("gemma3_text", Gemma3Config, "Gemma 3, its text models", describe = describe3, place = place_around);
}

const DEFAULTS: Defaults = Defaults { activation: "gelu_pytorch_tanh", eps: 1e-6, tied: true, d_head: Some(256), theta: 10_000.0 };

/// The keys that are Gemma's own.
#[derive(Debug, Deserialize)]
struct Keys {
    #[serde(default = "scalar")]
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    #[serde(default)]
    use_bidirectional_attention: bool,
    sliding_window_pattern: Option<usize>,
    rope_local_base_freq: Option<f64>,
}

fn scalar() -> f64 {
    256.0
}

/// What both have in common.
fn shared(config: &ConfigFile, own: &Keys, plain: Description) -> Result<Description> {
    if own.use_bidirectional_attention {
        return Err(config.wrong("`use_bidirectional_attention` is not supported; expected `false`"));
    }
    Ok(Description {
        norm: NormForm { kind: NormKind::RmsPlusOne, eps: plain.norm.eps },
        norms: NormPlaces::Around,
        scale: AttentionScale { factor: own.query_pre_attn_scalar.powf(-0.5), by_layer: false },
        embedding_scale: Some((plain.d_model as f64).sqrt()),
        ..plain
    })
}

fn describe2(config: &ConfigFile) -> Result<Description> {
    let (keys, own): (DecoderKeys, Keys) = (config.keys()?, config.keys()?);
    let window = config.or_unless_null("sliding_window", keys.sliding_window, 4096);
    let layer_forms = windowed(&keys.slides(config, |layer| layer.is_multiple_of(2))?, window);
    let caps = SoftCaps {
        scores: config.or_unless_null("attn_logit_softcapping", own.attn_logit_softcapping, 50.0),
        logits: config.or_unless_null("final_logit_softcapping", own.final_logit_softcapping, 30.0),
    };
    shared(config, &own, Description { layer_forms, caps, ..keys.llama(config, DEFAULTS)? })
}

fn describe3(config: &ConfigFile) -> Result<Description> {
    let (keys, own, rope): (DecoderKeys, Keys, RopeKeys) = (config.keys()?, config.keys()?, config.keys()?);
    let of = keys.rope_of(config, Defaults { theta: 1_000_000.0, ..DEFAULTS })?;
    let global = rope.of_layers(config, "full_attention", of)?;
    let theta = own.rope_local_base_freq.unwrap_or(10_000.0);
    let local = if rope.is_by_layers() {
        rope.of_layers(config, "sliding_attention", of)?
    } else {
        // The older dialect stretches the global embedding only.
        RotaryForm { theta, dims: of.d_head, scaling: RotaryScaling::None, amplitude: 1.0 }
    };
    let every = own.sliding_window_pattern.unwrap_or(6).max(1);
    let slides = keys.slides(config, |layer| !(layer + 1).is_multiple_of(every))?;
    let window = config.or_unless_null("sliding_window", keys.sliding_window, 4096);
    let form = |slides: &bool| match slides {
        true => LayerForm { window, position: LayerPosition::Local },
        false => LayerForm::default(),
    };
    // Files may name a cap of scores; norms of queries and keys took its place, and it is not applied.
    let caps = SoftCaps { scores: None, logits: own.final_logit_softcapping };
    let plain = Description {
        layer_forms: slides.iter().map(form).collect(),
        local_rotary: Some(local),
        query_key_norm: Some(QueryKeyNorm::EachHead),
        caps,
        ..keys.with_position(config, DEFAULTS, Position::Rotary(global))?
    };
    shared(config, &own, plain)
}
