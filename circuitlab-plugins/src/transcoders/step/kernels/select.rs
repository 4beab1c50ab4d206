//! Selection: one pass over the pre-activations of a block, with the bias added on the way.

use circuitlab_kernels::real::Real;
use circuitlab_kernels::rows;
use pulp::{Simd, WithSimd};

use super::block::{Block, Silence};

/// Finds the active entries of a block, and the silent ones near the threshold.
pub(super) struct Select<'a, R> {
    /// Pre-activations without bias: `[features, rows]`.
    pub(super) products: &'a [R],
    pub(super) rows: usize,
    /// Of the block's features.
    pub(super) biases: &'a [R],
    /// Of the block's features.
    pub(super) thresholds: &'a [R],
    /// Half the width of the window, where thresholds are trained.
    pub(super) half_window: Option<R>,
    pub(super) block: &'a mut Block<R>,
    /// Memory for the rows of one feature.
    pub(super) scratch: &'a mut Vec<u32>,
}

impl<R: Real> WithSimd for Select<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { products, rows: row_count, biases, thresholds, half_window, block, scratch } = self;
        scratch.resize(row_count + 1, 0);
        block.clear();
        // Silent entries less than this below the threshold are of interest.
        let reach = half_window.unwrap_or_default();
        for (feature, (&bias, &theta)) in biases.iter().zip(thresholds).enumerate() {
            let products = &products[feature * row_count..][..row_count];
            let rows::Scan { below, mut gap, found } = rows::scan(simd, products, bias, theta, reach, scratch);
            let active = block.part(&scratch[..found], |row| products[row as usize] + bias, theta);
            let near = found - active;
            let outside = row_count - found;
            let complement = half_window.is_some() && outside < near;
            if complement {
                block.silent.rows.truncate(block.silent.rows.len() - near);
                let far = products.iter().enumerate().filter(|(_, product)| **product + bias - theta <= -reach);
                block.silent.rows.extend(far.map(|(row, _)| row as u32));
            }
            if active + below < row_count {
                let ties = products.iter().enumerate().filter(|(_, product)| **product + bias == theta);
                let known = block.ties.len();
                block.ties.extend(ties.map(|(row, _)| (feature, row as u32)));
                if active + below + block.ties.len() - known < row_count {
                    // What is neither above, below nor at the threshold is not a number. It must show in the loss and in the gradient.
                    gap = R::of(f64::NAN);
                }
            }
            block.active.close();
            block.silent.close();
            block.silence.push(Silence { below, gap, near, complement });
        }
    }
}
