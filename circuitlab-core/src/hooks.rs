//! Named values inside a language model, and the visitor that sees and replaces them.
//!
//! Names are TransformerLens's: `blocks.3.mlp.hook_in` is the input of layer 3's MLP.

use std::fmt;
use std::str::FromStr;

use tch::Tensor;

use crate::{Error, Result};

/// A place inside one transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum BlockHook {
    /// Residual stream that enters the block: `[batch, position, d_model]`.
    ResidPre,
    /// Denominator of the norm before attention: `[batch, position, 1]`.
    Ln1Scale,
    /// Denominator of the norm of queries, where the family has one: `[batch, position, head, 1]`, or `[batch, position, 1, 1]` where
    /// one norm spans all heads.
    QueryNormScale,
    /// Queries after their norm and rotary embedding: `[batch, position, head, d_head]`.
    Query,
    /// Denominator of the norm of keys, as for queries.
    KeyNormScale,
    /// Keys after their norm and rotary embedding, before they are repeated over query groups: `[batch, position, kv_head, d_head]`.
    Key,
    /// Values: `[batch, position, kv_head, d_head]`.
    Value,
    /// Gate of sparse attention, 1 where a score is above 0 and 0 elsewhere: `[batch, head, query, key]`.
    AttnGate,
    /// Softmax pattern, times the gate where there is one: `[batch, head, query, key]`.
    Pattern,
    /// Mix of values by the pattern, per head: `[batch, position, head, d_head]`.
    Mixed,
    /// Denominator of the norm after attention, where the family has one: `[batch, position, 1]`.
    Ln1PostScale,
    /// What attention adds to the residual stream: `[batch, position, d_model]`.
    AttnOut,
    /// Residual stream between attention and MLP; in a parallel block what the MLP's norm reads, the block's input.
    /// `[batch, position, d_model]`.
    ResidMid,
    /// Denominator of the norm before the MLP: `[batch, position, 1]`.
    Ln2Scale,
    /// Output of the norm before the MLP, as TransformerLens defines it: without the gain for RMSNorm, with gain and bias
    /// for LayerNorm. `[batch, position, d_model]`.
    Ln2Normalized,
    /// What the MLP receives, after the norm with its gain: `[batch, position, d_model]`.
    MlpIn,
    /// What the MLP computes, before any post norm: `[batch, position, d_model]`.
    MlpRawOut,
    /// Denominator of the norm after the MLP, where the family has one: `[batch, position, 1]`.
    Ln2PostScale,
    /// What is added to the residual stream for the MLP, after any post norm: `[batch, position, d_model]`.
    MlpOut,
    /// Residual stream that leaves the block: `[batch, position, d_model]`.
    ResidPost,
}

impl BlockHook {
    /// All places, in the order in which a block reaches those that it has.
    pub const ALL: [Self; 20] = [
        Self::ResidPre,
        Self::Ln1Scale,
        Self::QueryNormScale,
        Self::Query,
        Self::KeyNormScale,
        Self::Key,
        Self::Value,
        Self::AttnGate,
        Self::Pattern,
        Self::Mixed,
        Self::Ln1PostScale,
        Self::AttnOut,
        Self::ResidMid,
        Self::Ln2Scale,
        Self::Ln2Normalized,
        Self::MlpIn,
        Self::MlpRawOut,
        Self::Ln2PostScale,
        Self::MlpOut,
        Self::ResidPost,
    ];

    /// The name below `blocks.{layer}.`, which is also what a CLT's `config.yaml` holds.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ResidPre => "hook_resid_pre",
            Self::Ln1Scale => "ln1.hook_scale",
            Self::QueryNormScale => "attn.q_norm.hook_scale",
            Self::Query => "attn.hook_q",
            Self::KeyNormScale => "attn.k_norm.hook_scale",
            Self::Key => "attn.hook_k",
            Self::Value => "attn.hook_v",
            Self::AttnGate => "attn.hook_gate",
            Self::Pattern => "attn.hook_pattern",
            Self::Mixed => "attn.hook_z",
            Self::Ln1PostScale => "ln1_post.hook_scale",
            Self::AttnOut => "hook_attn_out",
            Self::ResidMid => "hook_resid_mid",
            Self::Ln2Scale => "ln2.hook_scale",
            Self::Ln2Normalized => "ln2.hook_normalized",
            Self::MlpIn => "mlp.hook_in",
            Self::MlpRawOut => "mlp.hook_out",
            Self::Ln2PostScale => "ln2_post.hook_scale",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
        }
    }
}

impl fmt::Display for BlockHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BlockHook {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|hook| hook.name() == name)
            .ok_or_else(|| Error::unknown("hook", name, Self::ALL.iter().map(|hook| hook.name().to_owned()).collect()))
    }
}

/// A place inside a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HookPoint {
    /// Token embeddings, scaled where the family scales them, before any positional ones are added: `[batch, position, d_model]`.
    Embed,
    /// A place inside block `layer`.
    Block {
        /// The block, from 0.
        layer: usize,
        /// The place inside it.
        hook: BlockHook,
    },
    /// Denominator of the last norm: `[batch, position, 1]`.
    FinalScale,
    /// Logits: `[batch, position, vocabulary]`.
    Logits,
}

impl HookPoint {
    /// The place `hook` of block `layer`.
    pub const fn block(layer: usize, hook: BlockHook) -> Self {
        Self::Block { layer, hook }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embed => f.write_str("hook_embed"),
            Self::Block { layer, hook } => write!(f, "blocks.{layer}.{hook}"),
            Self::FinalScale => f.write_str("ln_final.hook_scale"),
            Self::Logits => f.write_str("logits"),
        }
    }
}

impl FromStr for HookPoint {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "hook_embed" => return Ok(Self::Embed),
            "ln_final.hook_scale" => return Ok(Self::FinalScale),
            "logits" => return Ok(Self::Logits),
            _ => {}
        }
        let (layer, hook) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')).ok_or_else(|| {
            Error::Invalid(format!(
                "`{name}` is no hook point; expected `hook_embed`, `blocks.LAYER.HOOK`, `ln_final.hook_scale` or `logits`"
            ))
        })?;
        let layer = layer.parse().map_err(|_| Error::Invalid(format!("`{name}`: `{layer}` is no layer number")))?;
        Ok(Self::block(layer, hook.parse()?))
    }
}

/// What a model does after a visit.
#[derive(Debug)]
pub enum Action {
    /// Go on with the value as it is.
    Continue,
    /// Go on with this value instead; its shape must be the same.
    Replace(Tensor),
    /// Nothing further is wanted: end the forward pass here.
    Stop,
}

/// Sees, and may replace, the values of a forward pass.
pub trait HookVisitor {
    /// Whether [`visit`](Self::visit) wants this place. A value that nobody wants may never be made.
    fn wants(&self, point: HookPoint) -> bool;

    /// Called at each wanted place, in the order of the forward pass.
    ///
    /// # Errors
    /// Ends the forward pass, which gives the error back.
    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action>;
}

/// Wants nothing: a plain forward pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl HookVisitor for NoHooks {
    fn wants(&self, _: HookPoint) -> bool {
        false
    }

    fn visit(&mut self, _: HookPoint, _: &Tensor) -> Result<Action> {
        Ok(Action::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        let blocks = BlockHook::ALL.map(|hook| HookPoint::block(11, hook));
        for point in blocks.into_iter().chain([HookPoint::Embed, HookPoint::FinalScale, HookPoint::Logits]) {
            assert_eq!(point.to_string().parse::<HookPoint>().expect("its own name"), point);
        }
    }

    #[test]
    fn a_misspelt_hook_is_answered_with_the_nearest() {
        let error = "blocks.0.mlp.hook_on".parse::<HookPoint>().expect_err("no such hook");
        assert!(error.to_string().contains("did you mean `mlp.hook_in`"), "{error}");
        assert!("blocks.x.mlp.hook_in".parse::<HookPoint>().is_err());
        assert!("block.0.mlp.hook_in".parse::<HookPoint>().is_err());
    }
}
