//! A language model made linear at a prompt: what attribution asks a model for.
//!
//! Hold every attention pattern and every norm's denominator as they were in one forward pass, and cut the MLPs out: what is left
//! of a transformer is linear from the residual stream to itself. Attribution pulls gradients back through it, which is the adjoint of that
//! linear map (Ameisen et al. 2025, "Circuit Tracing", section 3). The mean that a LayerNorm takes off is linear too, and is kept.

use std::fmt::Debug;

use tch::Tensor;

use crate::{BlockHook, Result};

/// A forward pass of one prompt, and the model as it was linearised there.
#[derive(Debug)]
pub struct FrozenPass<'a> {
    /// Logits, capped where the model caps them: `[position, vocabulary]`.
    pub logits: Tensor,
    /// Whether the MLP of a block reads what its attention reads, and not what attention has added to.
    pub parallel: bool,
    /// What is added to the embeddings for positions, where the model learns them: `[position, d_model]`.
    pub positions: Option<Tensor>,
    /// Rows of the unembedding: `[vocabulary, d_model]`.
    pub unembedding: Tensor,
    /// What products of queries and keys are multiplied by, before any soft cap: `[layer]`.
    pub score_scales: Vec<f64>,
    /// What is linear.
    pub adjoint: Box<dyn Adjoint + 'a>,
}

/// A linear passage between two places at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Passage {
    /// From the residual stream that a block's MLP reads ([`BlockHook::ResidMid`]) to `hook`, which is itself or a place of the norm after
    /// it: [`BlockHook::Ln2Normalized`] or [`BlockHook::MlpIn`].
    MlpInput {
        /// The block.
        layer: usize,
        /// Where the passage ends.
        hook: BlockHook,
    },
    /// From `hook`, [`BlockHook::MlpRawOut`] or [`BlockHook::MlpOut`], to what is added to the residual stream for the MLP.
    MlpOutput {
        /// The block.
        layer: usize,
        /// Where the passage begins.
        hook: BlockHook,
    },
    /// From the residual stream that enters a block to a head's query, after norm and rotary embedding.
    Query {
        /// The block.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// From the residual stream that enters a block to the key that a query head reads, after norm and rotary embedding.
    Key {
        /// The block.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// From the residual stream that leaves the last block to what the unembedding reads.
    Final,
}

/// Rows of a ragged batch of gradients that belong together: `targets * positions` of them, those of a target side by side and in the order
/// of positions, from position 0 on. Nothing that comes after a target can reach it, so later positions are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// How many targets.
    pub targets: i64,
    /// How many positions each of them has.
    pub positions: i64,
}

impl Span {
    /// Rows of it.
    pub const fn rows(self) -> i64 {
        self.targets * self.positions
    }
}

/// The adjoint of a model that was made linear at a prompt. Everything is in the model's type and on its device.
///
/// Conformance is checked by [`testing::model`](crate::testing::model): every answer is compared with autograd's.
pub trait Adjoint: Debug {
    /// Pulls gradients from a passage's end back to its beginning.
    ///
    /// # Shapes
    /// `gradient: [rows, width]`, where the width is that of the passage's end, `positions: [rows]`, int64; gives `[rows, d_model]`.
    ///
    /// # Errors
    /// A layer, head or hook that there is not, and shapes that do not fit.
    fn pull(&self, passage: Passage, gradient: &Tensor, positions: &Tensor) -> Result<Tensor>;

    /// What is at a passage's end where its beginning is zero: biases.
    ///
    /// # Shapes
    /// `positions: [rows]`, int64; gives `[rows, width]`.
    ///
    /// # Errors
    /// As for [`pull`](Self::pull).
    fn constant(&self, passage: Passage, positions: &Tensor) -> Result<Tensor>;

    /// Pulls gradients from what a block's attention adds to the residual stream back to the residual stream that enters the block.
    ///
    /// # Shapes
    /// `gradient: [rows, d_model]` of these spans one after the other, and the same back.
    ///
    /// # Errors
    /// A layer that there is not, and shapes that do not fit.
    fn attention(&self, layer: usize, gradient: &Tensor, spans: &[Span]) -> Result<Tensor>;

    /// The same head by head, of gradients at one position.
    ///
    /// # Shapes
    /// `gradient: [targets, d_model]`; gives `[targets, head, position + 1, d_model]`, whose sum over heads is what
    /// [`attention`](Self::attention) gives.
    ///
    /// # Errors
    /// As for [`attention`](Self::attention).
    fn heads(&self, layer: usize, gradient: &Tensor, position: i64) -> Result<Tensor>;

    /// What a block's attention adds where the residual stream that enters it is zero: biases. `[position, d_model]`.
    ///
    /// # Errors
    /// A layer that there is not.
    fn attention_constant(&self, layer: usize) -> Result<Tensor>;
}
