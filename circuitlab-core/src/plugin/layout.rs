//! Size, alignment and place of fields of what crosses the plugin boundary, as one number.
//!
//! One compiler lays one source out in one way, unless it is told otherwise (`-Z randomize-layout`, patched dependencies). This
//! catches that.

use std::mem::offset_of;

use super::registration::{Factory, Registration};
use super::services::HostServices;
use crate::codec::BlockShape;
use crate::explainer::{
    ChatAnswer, ChatIdentity, ChatMessage, ChatReply, ChatRequest, Evidence, EvidenceExample, Price, ReplyToken, Role, Usage,
};
use crate::hooks::{Action, HookPoint};
use crate::model::{ModelInfo, Past};
use crate::parallel::Pending;
use crate::params::{ParameterSpec, Parameters};
use crate::sparsity::{Activated, ActivationGradients, ActivationParameter, BackwardInput, JumpForm, PenaltyWeights, ThresholdForm};
use crate::tensors::{FileLayout, TensorLayout};
use crate::traffic::Traffic;
use crate::transcoder::{Batch, Dims, SavedRows, Scales, StageCost, StepContext, StepOutput};
use crate::{Content, Documents, Error, Mesh, Piece, Record, Result, TextInput};

/// The digest in hexadecimal.
pub(super) const DIGEST: Hexadecimal = Hexadecimal::of(digest());

const fn digest() -> u64 {
    let mut hash = Fnv::new();
    macro_rules! whole {
        ($($of:ty),* $(,)?) => { $(hash = hash.number(size_of::<$of>()).number(align_of::<$of>());)* };
    }
    macro_rules! fields {
        ($($of:ident { $($field:ident),* }),* $(,)?) => { $($(hash = hash.number(offset_of!($of, $field));)*)* };
    }
    whole!(Registration, Factory, HostServices, Error, Result<Vec<u8>>, Result<Vec<f32>>, String, Vec<u8>, Documents, tch::Tensor);
    whole!(
        BlockShape,
        Action,
        HookPoint,
        ModelInfo,
        Past,
        ParameterSpec,
        Parameters,
        Mesh,
        Pending,
        Record,
        Dims,
        Batch,
        StepContext<'static>,
        StageCost,
        StepOutput
    );
    whole!(SavedRows, Scales<'static>, FileLayout, TensorLayout, tch::Kind);
    whole!(Content, Piece, TextInput, Traffic, tch::Device);
    whole!(Activated, ActivationGradients, ActivationParameter, BackwardInput<'static>, PenaltyWeights);
    whole!(JumpForm, ThresholdForm, Option<ThresholdForm>);
    whole!(ChatIdentity, Option<Price>, ChatRequest, ChatMessage, Role, Result<ChatAnswer>, ChatReply, ReplyToken, Option<Usage>);
    whole!(Evidence, EvidenceExample, (String, f32));
    fields!(
        Registration { name, summary, package, version, normalise, schema, factory },
        Piece { content, last },
        TextInput { path, reader },
        Dims { layers, d_model, d_features },
        Batch { inputs, targets },
        Activated { acts, active },
        PenaltyWeights { lambda, mu, tanh_scale },
        ParameterSpec { name, layer, shape, init, per_feature, update, precision },
        StepOutput { mse, sparsity, preact, gradients, gradient_squares, squared_error, active_rows, stages },
        SavedRows { file, tensor, rows, per_feature },
        Scales { inputs, targets },
        FileLayout { file, tensors, metadata },
        TensorLayout { name, shape, kind },
        ModelInfo { family, name, fingerprint, layers, d_model, heads, vocabulary, context, bos, eos, stops },
        Past { tokens, layers },
        Traffic { axis, collective, calls, bytes },
        ChatIdentity { endpoint, model },
        Price { prompt, completion },
        ChatRequest { messages, max_tokens, temperature, seed, top_logprobs },
        ChatMessage { role, content },
        ChatReply { text, tokens, usage },
        ReplyToken { token, logprob, top },
        Usage { prompt_tokens, completion_tokens },
        Evidence { layer, feature, frequency, max_activation, examples, top_logits, bottom_logits },
        EvidenceExample { tokens, activations },
    );
    hash.0
}

/// FNV-1a, which a constant can compute.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    const fn number(self, number: usize) -> Self {
        let bytes = (number as u64).to_le_bytes();
        let mut hash = self.0;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        Self(hash)
    }
}

/// Sixteen digits.
pub(super) struct Hexadecimal([u8; 16]);

impl Hexadecimal {
    const fn of(number: u64) -> Self {
        let mut digits = [0; 16];
        let mut at = 0;
        while at < 16 {
            digits[at] = b"0123456789abcdef"[(number >> (60 - 4 * at)) as usize & 15];
            at += 1;
        }
        Self(digits)
    }

    pub(super) const fn as_str(&self) -> &str {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text,
            Err(_) => "",
        }
    }
}
