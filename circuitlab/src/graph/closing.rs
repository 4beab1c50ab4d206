//! What closes rows: everything that is neither feature nor error nor token.

use circuitlab_core::Passage;
use tch::{Device, Kind, Tensor};

use super::pass::Pass;
use crate::Result;

/// Vectors that are neither features nor errors nor tokens, and without which rows do not sum to what they explain.
#[derive(Debug)]
pub(super) struct Closing {
    /// Of each layer, added where its transcoder writes: the decoder's bias and what the skip makes of biases, `[position, d_model]`, zero at
    /// special positions.
    pub(super) decoder: Vec<Tensor>,
    /// Of each layer, added where its transcoder writes at special positions: `[special, d_model]`.
    pub(super) special: Vec<Tensor>,
    /// Of each layer, added to the stream after the MLP: the bias of a norm there, `[position, d_model]`.
    pub(super) after: Vec<Tensor>,
    /// What each layer's attention adds to a stream of zeros: `[position, d_model]`.
    pub(super) attention: Vec<Tensor>,
    /// What is added to the embeddings: `[position, d_model]`.
    pub(super) positions: Option<Tensor>,
}

impl Closing {
    pub(super) fn of(pass: &Pass<'_>) -> Result<Self> {
        let (kind, device): (Kind, Device) = pass.place;
        let all = Tensor::f_arange(pass.positions as i64, (Kind::Int64, device))?;
        let special: Vec<i64> = pass.special.iter().map(|position| i64::from(*position)).collect();
        let special = Tensor::from_slice(&special).f_to_device(device)?;
        let adjoint = &pass.frozen.adjoint;
        let mut closing = Self {
            decoder: Vec::new(),
            special: Vec::new(),
            after: Vec::new(),
            attention: Vec::new(),
            positions: pass.frozen.positions.as_ref().map(Tensor::shallow_clone),
        };
        for (layer, own) in pass.layers.iter().enumerate() {
            let mut decoder = own.dictionary.b_dec.f_to_kind(kind)?.f_unsqueeze(0)?.f_repeat([pass.positions as i64, 1])?;
            let mut left = own.outputs.f_index_select(0, &special)?;
            if let Some(skip) = &own.dictionary.skip {
                let skip = skip.f_to_kind(kind)?.f_tr()?;
                let biases = adjoint.constant(Passage::MlpInput { layer, hook: pass.hooks.0 }, &all)?.f_matmul(&skip)?;
                left = left - own.inputs.f_index_select(0, &special)?.f_matmul(&skip)? + biases.f_index_select(0, &special)?;
                decoder += biases;
            }
            closing.decoder.push(decoder.f_index_fill(0, &special, 0.0)?);
            closing.special.push(left);
            closing.after.push(adjoint.constant(Passage::MlpOutput { layer, hook: pass.hooks.1 }, &all)?);
            closing.attention.push(adjoint.attention_constant(layer)?);
        }
        Ok(closing)
    }
}
