//! The encoder's product and the choice of entries, a block of features at a time.

use circuitlab_core::{Result, ThresholdForm};
use tch::{Device, Kind, Tensor};

use super::rows;
use super::window::{self, Window};
use crate::transcoders::dictionary::{Layer, add_product, wide};

/// What is kept of a source layer.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) entries: Entries,
    /// Sum over rows of `relu(theta - h)`: `[d_features]`.
    pub(super) gaps: Tensor,
    /// Where the threshold is trained.
    pub(super) window: Option<Window>,
}

/// The entries that are not below their threshold, feature by feature. One that stands at the very threshold is among them, since the
/// pre-activation term does not pull on it, and has no activation.
#[derive(Debug)]
pub(super) struct Entries {
    /// The row of each, 32 bits.
    pub(super) rows: Tensor,
    /// The feature of each, 32 bits.
    pub(super) features: Tensor,
    /// Where each feature's begin, and the end, 32 bits: `[d_features + 1]`.
    pub(super) offsets: Tensor,
    /// Activations.
    pub(super) acts: Tensor,
    /// Whether above the threshold, boolean.
    pub(super) active: Tensor,
    /// Whether in the window of a trained threshold, boolean.
    pub(super) near: Option<Tensor>,
}

/// Numbers of a block of pre-activations, and of a block of window sums. On a CPU a megabyte in f32, which a core's own cache holds;
/// on a GPU half a gigabyte, so that there are few launches.
fn block_numbers(device: Device) -> i64 {
    if device == Device::Cpu { 1 << 18 } else { 1 << 27 }
}

/// Features of a block: a product of fewer than 64 rows is slow.
fn block_features(layer: &Layer<'_>, batch_rows: i64) -> i64 {
    let width = layer.w_dec.size()[1] * layer.w_dec.size()[2];
    (block_numbers(layer.w_enc.device()) / batch_rows.max(width).max(1)).max(64)
}

/// The entries of a layer; nothing where they are so many that dense products take less time.
///
/// # Shapes
/// `inputs: [rows, d_model]`.
pub(super) fn select(layer: &Layer<'_>, form: &ThresholdForm, inputs: &Tensor) -> Result<Option<Selected>> {
    let (features, batch_rows) = (layer.b_enc.size()[0], inputs.size()[0]);
    form.check(features)?;
    let most = super::dense_share(inputs.device()) * features as f64 * batch_rows as f64;
    let thresholds = form.thresholds.as_ref().map_or_else(|| layer.b_enc.zeros_like(), wide);
    let half_window = form.trained.as_ref().map(|trained| trained.bandwidth / 2.0);
    let (mut blocks, mut gaps, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    let mut count = 0;
    let block = block_features(layer, batch_rows);
    for start in (0..features).step_by(block as usize) {
        let length = block.min(features - start);
        let mut made = Block::new(layer, &thresholds, start, length, inputs);
        let reached = made.reached(half_window)?;
        count += reached.rows.numel();
        if count as f64 > most {
            return Ok(None);
        }
        if let Some(half_window) = half_window {
            let silent = rows::counts(&reached.offsets, made.gap.kind()).neg().g_add_scalar_(batch_rows);
            windows.push(window::select(&made.gap, half_window, &silent, start)?);
        }
        blocks.push(reached);
        gaps.push(made.gap.relu_().sum_dim_intlist(1, false, None::<Kind>));
    }
    let window = half_window.map(|_| Window::join(windows));
    Ok(Some(Selected { entries: Entries::join(&blocks, features)?, gaps: Tensor::cat(&gaps, 0), window }))
}

/// A block of features.
struct Block {
    start: i64,
    thresholds: Tensor,
    /// `[features, rows]`: entries then come out feature by feature.
    pre_acts: Tensor,
    /// `theta - h`, of the same shape.
    gap: Tensor,
}

impl Block {
    fn new(layer: &Layer<'_>, thresholds: &Tensor, start: i64, length: i64, inputs: &Tensor) -> Self {
        let of = |tensor: &Tensor| tensor.narrow(0, start, length);
        let pre_acts = add_product(&of(layer.b_enc).unsqueeze(1), &of(&layer.w_enc), &inputs.tr(), layer.compute_kind());
        let thresholds = of(thresholds);
        let gap = thresholds.unsqueeze(1) - &pre_acts;
        Self { start, thresholds, pre_acts, gap }
    }

    /// The block's entries, their features and offsets counted within the block.
    fn reached(&self, half_window: Option<f64>) -> Result<Entries> {
        let places = self.pre_acts.ge_tensor(&self.thresholds.unsqueeze(1)).f_nonzero()?;
        let [features, rows] = [0, 1].map(|axis| places.select(1, axis));
        let batch_rows = self.pre_acts.size()[1];
        let pre_acts = self.pre_acts.take(&(&features * batch_rows + &rows));
        let thresholds = self.thresholds.index_select(0, &features);
        let active = pre_acts.gt_tensor(&thresholds);
        let near = half_window.map(|half| (thresholds - &pre_acts).abs().lt(half));
        let features = features.to_kind(Kind::Int);
        let offsets = rows::offsets(&features, self.pre_acts.size()[0])?;
        let features = features.g_add_scalar(self.start);
        Ok(Entries { rows: rows.to_kind(Kind::Int), features, offsets, acts: pre_acts * &active, active, near })
    }
}

impl Entries {
    fn join(blocks: &[Self], count: i64) -> Result<Self> {
        let all = |of: fn(&Self) -> &Tensor| Tensor::cat(&blocks.iter().map(of).collect::<Vec<_>>(), 0);
        let features = all(|block| &block.features);
        let near: Vec<&Tensor> = blocks.iter().filter_map(|block| block.near.as_ref()).collect();
        Ok(Self {
            offsets: rows::offsets(&features, count)?,
            features,
            rows: all(|block| &block.rows),
            acts: all(|block| &block.acts),
            active: all(|block| &block.active),
            near: (!near.is_empty()).then(|| Tensor::cat(&near, 0)),
        })
    }

    /// Adds each row's decoding to `reached: [rows, targets * d_model]`.
    pub(super) fn decode(&self, layer: &Layer<'_>, reached: &mut Tensor) -> Result<()> {
        let (rows, order) = self.rows.sort_stable(true, 0, false);
        let (features, acts) = (self.features.index_select(0, &order), self.acts.index_select(0, &order));
        let offsets = rows::offsets(&rows, reached.size()[0])?;
        for (columns, decoder) in layer.decoder_parts() {
            let mut to = reached.narrow(1, columns.start, columns.end - columns.start);
            to += rows::sums(&decoder, &features, &offsets, Some(&acts))?;
        }
        Ok(())
    }
}
