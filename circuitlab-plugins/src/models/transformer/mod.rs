//! One decoder-only transformer for all model families.
//!
//! A family is a page: how its `config.json` becomes a [`Description`], and where its tensors lie ([`Family`]). The forward
//! pass is written once, shows every [`HookPoint`](circuitlab_core::HookPoint) in order, and never branches on a name.

mod attention;
mod block;
mod description;
mod family;
mod fingerprint;
mod forward;
mod frozen;
mod mask;
mod mlp;
mod norm;
mod open;
mod rotary;
mod shards;
mod sites;
mod walk;
mod weights;

pub use description::{
    Activation, AttentionScale, Biases, BlockForm, Description, LayerForm, LayerPosition, MlpForm, NormForm, NormKind, NormPlaces,
    Position, QueryKeyNorm, RotaryForm, RotaryScaling, SoftCaps,
};
pub use family::{Family, Layout, Place};
pub use forward::Transformer;
pub use sites::Site;
