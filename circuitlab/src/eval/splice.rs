//! Replaces MLP outputs during a forward pass.

use std::ops::Range;

use circuitlab_core::{Action, BlockHook, Error as CoreError, HookPoint, HookVisitor};
use tch::{Kind, Tensor};

use super::batch::pick;
use crate::saved::SavedTranscoder;

/// What takes the place of an MLP's output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stand<'a> {
    /// The transcoder's reconstruction, from the inputs of this very pass.
    Transcoder(&'a SavedTranscoder),
    /// Nothing.
    Zero,
    /// The mean output of each layer, `[d_model]`.
    Mean(&'a [Tensor]),
}

/// Splices a stand-in into some layers, on some rows.
#[derive(Debug)]
pub(super) struct Splice<'a> {
    stand: Stand<'a>,
    layers: Range<usize>,
    hooks: (BlockHook, BlockHook),
    rows: &'a Tensor,
    acts: Vec<Tensor>,
    /// What the layer that is passed reads, `[rows, d_model]`.
    inputs: Option<Tensor>,
}

impl<'a> Splice<'a> {
    /// `rows` are flat indices into `[batch * position]`.
    pub(super) fn new(stand: Stand<'a>, layers: Range<usize>, hooks: (BlockHook, BlockHook), rows: &'a Tensor) -> Self {
        Self { stand, layers, hooks, rows, acts: Vec::new(), inputs: None }
    }

    fn stand_in(&self, layer: usize, value: &Tensor) -> circuitlab_core::Result<Tensor> {
        let rows = self.rows.numel() as i64;
        let width = value.size()[2];
        Ok(match self.stand {
            Stand::Transcoder(saved) => {
                let inputs = self.inputs.as_ref().filter(|_| self.acts.len() == layer + 1);
                let inputs =
                    inputs.ok_or_else(|| CoreError::Invalid(format!("the outputs of layer {layer} were shown before its inputs")))?;
                saved.transcoder.decode(&saved.params, &self.acts, inputs, layer)?
            }
            Stand::Zero => Tensor::zeros([rows, width], (Kind::Float, value.device())),
            Stand::Mean(means) => means[layer].unsqueeze(0).expand([rows, width], false),
        })
    }
}

impl HookVisitor for Splice<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        match point {
            HookPoint::Block { layer, hook } if hook == self.hooks.1 => self.layers.contains(&layer),
            // Features of all layers up to the last spliced one write into it.
            HookPoint::Block { layer, hook } if hook == self.hooks.0 => {
                matches!(self.stand, Stand::Transcoder(_)) && layer < self.layers.end
            }
            _ => false,
        }
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> circuitlab_core::Result<Action> {
        let HookPoint::Block { layer, hook } = point else {
            return Ok(Action::Continue);
        };
        if hook == self.hooks.0 {
            if let Stand::Transcoder(saved) = self.stand {
                if self.acts.len() != layer {
                    return Err(CoreError::Invalid(format!(
                        "`{point}` was shown after {} source layers, expected {layer}",
                        self.acts.len()
                    )));
                }
                let inputs = pick(value, self.rows).to_kind(Kind::Float);
                self.acts.push(saved.transcoder.encode(&saved.params, &*saved.activation, layer, &inputs)?);
                self.inputs = Some(inputs);
            }
            return Ok(Action::Continue);
        }
        let replaced = value.flatten(0, 1).index_copy(0, self.rows, &self.stand_in(layer, value)?.to_kind(value.kind()));
        Ok(Action::Replace(replaced.view_as(value)))
    }
}
