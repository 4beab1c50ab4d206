//! The backward pass of a block of features.

use circuitlab_core::PenaltyWeights;
use circuitlab_kernels::real::{Real, Stored};
use circuitlab_kernels::rows;
use pulp::{Simd, WithSimd};

use super::block::{Block, Order};
use super::spread::add_spread;

/// The penalty terms of a block and their gradient to entries and decoder norms, once these are known.
pub(super) fn penalties<R: Real>(block: &mut Block<R>, norms: &[R], weights: PenaltyWeights, mean_rows: f64) {
    let Block { features, active, values, silence, grads, silent_grads, pulls, per_norm, penalties, .. } = block;
    let (sparsity_weight, preact_weight) = (weights.lambda / mean_rows, weights.mu / mean_rows);
    let scale = R::of(weights.tanh_scale);
    let [mut sparsity, mut preact] = [0.0; 2];
    grads.clear();
    grads.reserve_exact(values.len());
    silent_grads.clear();
    silent_grads.resize(features.len(), R::default());
    pulls.clear();
    per_norm.clear();
    for (place, norm) in norms[features.clone()].iter().enumerate() {
        let steepness = scale * *norm;
        let [mut tanh_sum, mut slope_sum, mut pull_sum] = [R::default(); 3];
        for value in &values[active.of(place)] {
            let tanh = (*value * steepness).tanh();
            let slope = R::of(1.0) - tanh * tanh;
            tanh_sum += tanh;
            slope_sum += slope * *value;
            let pull = R::of(sparsity_weight) * steepness * slope;
            pull_sum += pull;
            grads.push(pull);
        }
        pulls.push(pull_sum);
        sparsity += tanh_sum.wide();
        preact += (silence[place].gap * *norm).wide();
        let grad = R::of(sparsity_weight) * scale * slope_sum + R::of(preact_weight) * silence[place].gap;
        // A feature whose decoder is all zero has no direction to shrink along, and no gradient through its norm.
        per_norm.push(if *norm > R::default() { grad / *norm } else { R::default() });
    }
    *penalties = [sparsity * sparsity_weight, preact * preact_weight];
}

/// The part of a block's decoder gradient, and of the gradient to its entries, that one tile of the error gives.
pub(super) struct DecoderTile<'a, R, W> {
    pub(super) block: &'a mut Block<R>,
    /// The decoder of the block's features.
    pub(super) decoder: &'a [W],
    /// Its gradient.
    pub(super) gradient: &'a mut [R],
    /// Numbers of one feature's decoder.
    pub(super) stride: usize,
    /// Where the tile's columns begin in them.
    pub(super) offset: usize,
    /// The gradient of the squared error: `[rows, width]`.
    pub(super) error: &'a [R],
    /// Its sum over the rows: `[width]`.
    pub(super) total: &'a [R],
    /// Whether the gradient is added to what is there.
    pub(super) accumulate: bool,
    /// Memory for all entries of the block, where all are gone over.
    pub(super) dense: Option<&'a mut [R]>,
}

impl<R: Real, W: Stored<R>> WithSimd for DecoderTile<'_, R, W> {
    /// The sum of the squares of the gradient's part.
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { block, decoder, gradient, stride, offset, error, total, accumulate, dense } = self;
        let width = total.len();
        let row = || vec![R::default(); width];
        let (mut wide, mut made) = (row(), row());
        let mut squares = 0.0;
        for place in 0..block.features.len() {
            let begin = place * stride + offset;
            // The next feature's piece lies a whole decoder away, where the processor does not look ahead by itself.
            if let Some(next) = decoder.get(begin + stride..begin + stride + width) {
                rows::prefetch(next);
            }
            let decoder = W::widened(&decoder[begin..][..width], &mut wide);
            let piece = &mut gradient[begin..][..width];
            // What is only written goes to memory in one piece, and takes no room in the caches.
            let through = !accumulate && dense.is_none();
            let gradient = if through { &mut made[..] } else { &mut *piece };
            let span = block.active.of(place);
            let places = &block.active.rows[span.clone()];
            rows::add_dots(simd, &mut block.grads[span.clone()], decoder, places, error);
            let per_norm = block.per_norm[place];
            if accumulate {
                rows::add_multiple(simd, gradient, per_norm, decoder);
            } else {
                gradient.iter_mut().zip(decoder).for_each(|(gradient, decoder)| *gradient = per_norm * *decoder);
            }
            if dense.is_none() {
                rows::add_rows(simd, gradient, &block.values[span], places, error);
                squares += rows::dot(simd, gradient, gradient).wide();
            }
            if through {
                rows::write_past_caches(piece, &made);
            }

            let listed = &block.silent.rows[block.silent.of(place)];
            let complement = block.silence[place].complement;
            if complement || !listed.is_empty() {
                let (start, sign) = if complement { (Some(total), -1.0) } else { (None, 1.0) };
                block.silent_grads[place] += rows::dot_with_sum(simd, decoder, start, R::of(sign), listed, error);
            }
        }
        let Some(scratch) = dense else {
            rows::written();
            return squares;
        };
        let row_count = error.len() / width.max(1);
        let scratch = block.spread(&block.values, row_count, Order::Features, scratch);
        let pieces = gradient.chunks_mut(stride).map(|piece| &mut piece[offset..offset + width]).collect();
        add_spread(simd, pieces, scratch, row_count, error, width) + squares
    }
}

/// The gradients of a block to encoder, bias and threshold.
pub(super) struct Encoder<'a, R> {
    pub(super) block: &'a mut Block<R>,
    /// The rest is of the block's features alone.
    pub(super) norms: &'a [R],
    pub(super) thresholds: &'a [R],
    /// Width of the window, and the threshold's derivative by what is trained.
    pub(super) trained: Option<(R, &'a [R])>,
    pub(super) penalty: PenaltyWeights,
    pub(super) mean_rows: f64,
    /// `[rows, d_model]`.
    pub(super) inputs: &'a [R],
    /// Their sum over the rows.
    pub(super) total: &'a [R],
    /// `[features, d_model]`.
    pub(super) w_enc: &'a mut [R],
    pub(super) b_enc: &'a mut [R],
    /// Of the trained threshold; empty where there is none.
    pub(super) own: &'a mut [R],
    pub(super) accumulate: bool,
    /// Memory for all entries of the block, where all are gone over.
    pub(super) dense: Option<&'a mut [R]>,
}

impl<R: Real> WithSimd for Encoder<'_, R> {
    /// The sums of the squares of the three gradients.
    type Output = [f64; 3];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f64; 3] {
        let Self { block, norms, thresholds, trained, penalty, mean_rows, inputs, total, w_enc, b_enc, own, accumulate, dense } = self;
        let width = total.len();
        let mut squares = [0.0; 3];
        let through = !accumulate && dense.is_none();
        let mut made = vec![R::default(); width];
        if !accumulate {
            if !through {
                w_enc.fill(R::default());
            }
            b_enc.fill(R::default());
            own.fill(R::default());
        }
        let mut ties = block.ties.iter().peekable();
        for (place, (&norm, &theta)) in norms.iter().zip(thresholds).enumerate() {
            let silence = block.silence[place];
            let below = R::of(silence.below as f64);
            // What the pre-activation term gives at every entry below the threshold.
            let push = -R::of(penalty.mu / mean_rows) * norm;
            let span = block.active.of(place);
            let half = trained.map(|(bandwidth, _)| bandwidth * R::of(0.5));
            let (mut bias, mut near, mut all) = (push * below, R::default(), R::default());
            for (grad, value) in block.grads[span.clone()].iter_mut().zip(&block.values[span.clone()]) {
                all += *grad;
                bias += *grad;
                if half.is_some_and(|half| *value - theta < half) {
                    near += *grad;
                }
                // The total below holds the push for every row; where the feature is active there is none.
                *grad = *grad - push;
            }
            if let Some((bandwidth, slopes)) = trained {
                // A silent entry's activation is 0, where the slope of the tanh is 1.
                let slope = R::of(penalty.lambda / mean_rows * penalty.tanh_scale) * norm;
                let of_error = block.silent_grads[place] - if silence.complement { all - block.pulls[place] } else { R::default() };
                near += of_error + R::of(silence.near as f64) * slope;
                let grad = (-push * below - theta / bandwidth * near) * slopes[place];
                own[place] += grad;
                squares[2] += (own[place] * own[place]).wide();
            }
            let piece = &mut w_enc[place * width..][..width];
            let gradient = if through { &mut made[..] } else { &mut *piece };
            if through {
                gradient.fill(R::default());
            }
            rows::add_multiple(simd, gradient, push, total);
            while let Some((_, row)) = ties.next_if(|(feature, _)| *feature == place) {
                rows::add_multiple(simd, gradient, -push, &inputs[*row as usize * width..][..width]);
            }
            if dense.is_none() {
                rows::add_rows(simd, gradient, &block.grads[span.clone()], &block.active.rows[span], inputs);
                squares[0] += rows::dot(simd, gradient, gradient).wide();
            }
            if through {
                rows::write_past_caches(piece, &made);
            }
            b_enc[place] += bias;
            squares[1] += (b_enc[place] * b_enc[place]).wide();
        }
        if let Some(scratch) = dense {
            let row_count = inputs.len() / width.max(1);
            let scratch = block.spread(&block.grads, row_count, Order::Features, scratch);
            squares[0] = add_spread(simd, w_enc.chunks_mut(width.max(1)).collect(), scratch, row_count, inputs, width);
        }
        rows::written();
        squares
    }
}
