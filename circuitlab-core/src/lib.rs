//! What a CircuitLab plugin is written against: the traits, the types that they exchange, and the registry in which
//! they are found by name.
//!
//! | trait | kind | what it is |
//! | --- | --- | --- |
//! | [`LanguageModel`] | `model` | runs tokens through a language model and shows named values to a visitor |
//! | [`ActivationCodec`] | `codec` | turns cached activations into bytes and back |
//! | [`SparsityActivation`] | `activation` | which features are active, and what that adds to loss and gradient |
//! | [`Transcoder`] | `transcoder` | the parameters and the training step of a dictionary |
//! | [`ParallelismStrategy`] | `strategy` | who owns which rows and features, and how ranks add up |
//! | [`TextSource`] | `text-source` | documents from a file |
//! | [`MetricSink`] | `metric-sink` | takes the figures of a run |
//! | [`Explainer`] | `explainer` | finds words for features, by itself or by a language model ([`Chat`]) |
//!
//! A plugin is a config struct, its [`Construct`] and one [`register!`] line; `templates/` holds one crate per kind.
//! This crate stays small, and chooses nothing that a trait stands for: the engine is the crate `circuitlab`.

pub mod codec;
pub mod config;
pub mod error;
pub mod explainer;
pub mod files;
pub mod frozen;
pub mod hooks;
pub mod metric;
pub mod model;
pub mod parallel;
pub mod params;
pub mod plugin;
pub mod random;
mod saving;
pub mod shape;
pub mod sparsity;
pub mod tensors;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod traffic;
pub mod transcoder;

pub use codec::{ActivationCodec, BlockShape, CodecChain, CodecInput};
pub use config::Spec;
pub use error::{Error, Result};
pub use explainer::{Chat, Evidence, Explainer};
pub use frozen::{Adjoint, FrozenPass, Passage, Span};
pub use hooks::{Action, BlockHook, HookPoint, HookVisitor};
pub use metric::{MetricSink, Record};
pub use model::{LanguageModel, ModelInfo, ModelSource, Past};
pub use parallel::{Axis, Mesh, ParallelismStrategy};
pub use params::{Init, ParameterSpec, Parameters, Precision, Update};
pub use plugin::{Construct, Kind, Registered, Registration, Registry};
pub use saving::Saving;
pub use schemars;
pub use sparsity::{
    Activated, ActivationGradients, ActivationParameter, BackwardInput, JumpForm, PenaltyWeights, Scope, SparsityActivation, ThresholdForm,
    TrainedThreshold,
};
pub use tch;
pub use text::{Content, Documents, Piece, TextInput, TextSource};
pub use transcoder::{Batch, Dictionary, Dims, SavedRows, Scales, StageCost, StepContext, StepOutput, Transcoder};
