//! The places of a transformer that hold weights, and what their shapes must be.

use super::description::{Description, NormKind, Position, QueryKeyNorm};

/// A module with a weight and perhaps a bias; the number is its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Site {
    /// Token embedding: `[vocabulary, d_model]`.
    Embedding,
    /// Learned positions: `[context, d_model]`.
    Positions,
    /// Norm before attention: `[d_model]`.
    Norm1(usize),
    /// `[heads * d_head, d_model]`.
    Query(usize),
    /// `[kv_heads * d_head, d_model]`.
    Key(usize),
    /// `[kv_heads * d_head, d_model]`.
    Value(usize),
    /// Norm of queries: `[d_head]`, or `[heads * d_head]` where it spans all heads.
    QueryNorm(usize),
    /// Norm of keys: `[d_head]`, or `[kv_heads * d_head]`.
    KeyNorm(usize),
    /// Attention's output: `[d_model, heads * d_head]`.
    Output(usize),
    /// Norm after attention: `[d_model]`.
    PostNorm1(usize),
    /// Norm before the MLP: `[d_model]`.
    Norm2(usize),
    /// `[d_mlp, d_model]`.
    Gate(usize),
    /// `[d_mlp, d_model]`.
    Up(usize),
    /// `[d_model, d_mlp]`.
    Down(usize),
    /// Norm after the MLP: `[d_model]`.
    PostNorm2(usize),
    /// Last norm: `[d_model]`.
    FinalNorm,
    /// `[vocabulary, d_model]`.
    Unembedding,
}

impl Site {
    /// The places outside of blocks.
    pub(super) const OUTER: [Self; 4] = [Self::Embedding, Self::Positions, Self::FinalNorm, Self::Unembedding];

    /// The places of one block.
    pub(super) const fn of_block(layer: usize) -> [Self; 13] {
        [
            Self::Norm1(layer),
            Self::Query(layer),
            Self::Key(layer),
            Self::Value(layer),
            Self::QueryNorm(layer),
            Self::KeyNorm(layer),
            Self::Output(layer),
            Self::PostNorm1(layer),
            Self::Norm2(layer),
            Self::Gate(layer),
            Self::Up(layer),
            Self::Down(layer),
            Self::PostNorm2(layer),
        ]
    }

    /// Whether such a transformer has this place.
    pub(super) fn exists(self, description: &Description) -> bool {
        match self {
            Self::Positions => description.position == Position::Learned,
            Self::Gate(_) => description.mlp.gated,
            Self::QueryNorm(_) | Self::KeyNorm(_) => description.query_key_norm.is_some(),
            Self::Norm1(_) | Self::Norm2(_) => description.norms.before(),
            Self::PostNorm1(_) | Self::PostNorm2(_) => description.norms.after(),
            Self::Unembedding => !description.tied,
            _ => true,
        }
    }

    /// Whether it has a bias there.
    pub(super) fn has_bias(self, description: &Description) -> bool {
        match self {
            Self::Norm1(_) | Self::Norm2(_) | Self::PostNorm1(_) | Self::PostNorm2(_) | Self::FinalNorm => {
                description.norm.kind == NormKind::Layer
            }
            Self::Query(_) | Self::Key(_) | Self::Value(_) => description.biases.qkv,
            Self::Output(_) => description.biases.output,
            Self::Gate(_) | Self::Up(_) | Self::Down(_) => description.biases.mlp,
            Self::QueryNorm(_) | Self::KeyNorm(_) | Self::Embedding | Self::Positions | Self::Unembedding => false,
        }
    }

    /// The shape of its weight, `[out, in]` for linear maps.
    pub(super) fn weight_shape(self, description: &Description) -> Vec<i64> {
        let d_model = description.d_model;
        let queries = description.heads * description.d_head;
        let keys = description.kv_heads * description.d_head;
        let sizes = match self {
            Self::Embedding | Self::Unembedding => vec![description.vocabulary, d_model],
            Self::Positions => vec![description.context, d_model],
            Self::Norm1(_) | Self::Norm2(_) | Self::PostNorm1(_) | Self::PostNorm2(_) | Self::FinalNorm => vec![d_model],
            Self::QueryNorm(_) | Self::KeyNorm(_) if description.query_key_norm != Some(QueryKeyNorm::AllHeads) => vec![description.d_head],
            Self::QueryNorm(_) => vec![queries],
            Self::KeyNorm(_) => vec![keys],
            Self::Query(_) => vec![queries, d_model],
            Self::Key(_) | Self::Value(_) => vec![keys, d_model],
            Self::Output(_) => vec![d_model, queries],
            Self::Gate(_) | Self::Up(_) => vec![description.d_mlp, d_model],
            Self::Down(_) => vec![d_model, description.d_mlp],
        };
        sizes.into_iter().map(|size| size as i64).collect()
    }
}
