//! A transcoder in somebody's files.

use std::fmt::Debug;
use std::ops::Range;

use circuitlab_core::{Dims, Error as CoreError};
use tch::{Kind, Tensor};

use super::array::{Array, Parts};
use crate::saved::Card;
use crate::{Error, Result};

/// `model_kind` of a cross-layer transcoder.
pub(super) const CROSS_LAYER: &str = "cross_layer_transcoder";
/// `model_kind` of per-layer transcoders.
pub(super) const PER_LAYER: &str = "transcoder_set";

/// What is known of a transcoder before its numbers are read.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) dims: Dims,
    /// Type of its matrices.
    pub(super) kind: Kind,
    /// What its folder says, or its tool.
    pub(super) card: Card,
    pub(super) thresholds: bool,
    pub(super) skip: bool,
    /// What raw rows are multiplied by before they come to it: inputs and targets of each layer.
    pub(super) scales: [Vec<f64>; 2],
}

impl Facts {
    /// Without scales.
    pub(super) fn plain(dims: Dims, kind: Kind, card: Card, [thresholds, skip]: [bool; 2]) -> Self {
        Self { dims, kind, card, thresholds, skip, scales: [vec![1.0; dims.layers], vec![1.0; dims.layers]] }
    }

    /// Whether features write to later layers.
    pub(super) fn crosses(&self) -> bool {
        self.card.model_kind == CROSS_LAYER
    }

    /// The layers that a source layer writes to.
    pub(super) fn targets(&self, source: usize) -> Range<usize> {
        source..if self.crosses() { self.dims.layers } else { source + 1 }
    }
}

/// The numbers of a layer, in the axes of circuit-tracer.
#[derive(Debug)]
pub(super) struct LayerParts {
    /// `[d_features, d_model]`.
    pub(super) w_enc: Parts,
    /// `[d_features]`.
    pub(super) b_enc: Tensor,
    /// `[d_features, targets, d_model]`.
    pub(super) w_dec: Parts,
    /// `[d_model]`.
    pub(super) b_dec: Tensor,
    /// `[d_features]`.
    pub(super) thresholds: Option<Tensor>,
    /// `[d_model, d_model]`, of which `x skip^T` is added.
    pub(super) skip: Option<Tensor>,
}

/// A transcoder in somebody's files.
pub(super) trait Source: Debug {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// The same, to change.
    fn facts_mut(&mut self) -> &mut Facts;

    /// Opens a layer, whose shapes fit the facts.
    fn layer(&self, layer: usize) -> Result<LayerParts>;
}

/// Refuses numbers that are none.
pub(super) fn finite(layer: usize, name: &str, numbers: Tensor) -> Result<Tensor> {
    // A sum is not finite where a number is not, and needs no mask; a sum that overflows is looked at closely.
    if numbers.f_sum(Kind::Double).map_err(CoreError::from)?.double_value(&[]).is_finite() {
        return Ok(numbers);
    }
    let wrong = numbers.f_isfinite().and_then(|finite| finite.f_logical_not()?.f_sum(Kind::Int64)).map_err(CoreError::from)?;
    match wrong.int64_value(&[]) {
        0 => Ok(numbers),
        count => {
            Err(Error::Invalid(format!("layer {layer}: {count} numbers of `{name}` are not finite, NaN or infinite; expected weights")))
        }
    }
}

/// Refuses thresholds that are NaN. Infinite ones are those of features that are always, or never, active.
pub(super) fn thresholds(layer: usize, numbers: Tensor) -> Result<Tensor> {
    let wrong = numbers.f_isnan().and_then(|nan| nan.f_sum(Kind::Int64)).map_err(CoreError::from)?.int64_value(&[]);
    if wrong == 0 {
        return Ok(numbers);
    }
    Err(Error::Invalid(format!("layer {layer}: {wrong} thresholds are NaN")))
}

/// Where the numbers of a layer lie, in the axes of circuit-tracer.
#[derive(Debug)]
pub(super) struct LayerArrays {
    pub(super) w_enc: Array,
    pub(super) b_enc: Array,
    pub(super) w_dec: Array,
    pub(super) b_dec: Array,
    /// One for each feature, or one for all.
    pub(super) thresholds: Option<Array>,
    pub(super) skip: Option<Array>,
}

impl LayerArrays {
    /// Checks all shapes against the encoder's; gives `d_model` and `d_features`.
    pub(super) fn sizes(&self, targets: usize) -> Result<[usize; 2]> {
        let [features, d_model] = self.w_enc.sizes(["d_features", "d_model"])?;
        let (of_features, of_model) = (("d_features", features), ("d_model", d_model));
        self.b_enc.has_shape(&[of_features])?;
        self.w_dec.has_shape(&[of_features, ("targets", targets as i64), of_model])?;
        self.b_dec.has_shape(&[of_model])?;
        if let Some(thresholds) = self.thresholds.as_ref().filter(|thresholds| thresholds.shape().iter().product::<i64>() != 1) {
            thresholds.has_shape(&[of_features])?;
        }
        if let Some(skip) = &self.skip {
            skip.has_shape(&[of_model, of_model])?;
        }
        Ok([d_model as usize, features as usize])
    }

    /// Checks them against those of the other layers.
    pub(super) fn check(&self, layer: usize, targets: usize, facts: &Facts) -> Result<()> {
        let Dims { d_model, d_features, .. } = facts.dims;
        let found = self.sizes(targets)?;
        if found != [d_model, d_features] {
            let message = format!(
                "layer {layer} has {} features and d_model {}, layer 0 has {d_features} and {d_model}; expected the same in all layers",
                found[1], found[0]
            );
            return Err(self.w_enc.wrong(&message));
        }
        for (what, there, wanted) in
            [("thresholds", self.thresholds.is_some(), facts.thresholds), ("a linear skip", self.skip.is_some(), facts.skip)]
        {
            if there != wanted {
                let [this, first] = if there { ["has", "has none"] } else { ["has not", "has them"] };
                return Err(self.w_enc.wrong(&format!("layer {layer} {this} {what}, layer 0 {first}; expected the same in all layers")));
            }
        }
        Ok(())
    }

    /// Reads the vectors, and the skip.
    pub(super) fn read(self, layer: usize, features: usize) -> Result<LayerParts> {
        let read = |name: &str, array: &Array| finite(layer, name, array.read()?);
        let spread = |array: &Array| -> Result<Tensor> {
            let all = thresholds(layer, array.read()?)?;
            Ok(all.f_reshape(-1).and_then(|all| all.f_expand([features as i64], false)?.f_contiguous()).map_err(CoreError::from)?)
        };
        Ok(LayerParts {
            b_enc: read("b_enc", &self.b_enc)?,
            b_dec: read("b_dec", &self.b_dec)?,
            thresholds: self.thresholds.as_ref().map(spread).transpose()?,
            skip: self.skip.as_ref().map(|skip| read("W_skip", skip)).transpose()?,
            w_enc: Parts(vec![self.w_enc]),
            w_dec: Parts(vec![self.w_dec]),
        })
    }
}
