//! The gradients of a layer from its entries; the formulas are those of [`ThresholdForm`].

use circuitlab_core::{Error, Result, StepContext, ThresholdForm, TrainedThreshold};
use tch::{Kind, Tensor};

use super::rows;
use super::select::{Entries, Selected};
use super::window::Window;
use crate::transcoders::dictionary::{Layer, wide};
use crate::transcoders::step::dense::LayerGradients;

/// What the gradients of a layer are made from, beside its entries. `n` are decoder norms, `B` the rows of the mean.
struct Back<'a> {
    layer: &'a Layer<'a>,
    entries: &'a Entries,
    grad_reached: &'a Tensor,
    norms: Tensor,
    /// `mu n / B`: how the pre-activation term pulls on a silent entry.
    pull: Tensor,
    /// `lambda C n / B`: the slope of the tanh at 0.
    sparsity_slopes: Tensor,
    /// `dL/da` at each entry, penalties left out.
    grad_acts: Tensor,
    /// `1 - tanh(C a n)^2` at each entry.
    slopes: Tensor,
}

/// Losses and gradients of a layer, and on how many rows each feature was active.
///
/// # Shapes
/// `inputs: [rows, d_model]`, `grad_reached: [rows, targets * d_model]`.
pub(super) fn sparse(
    layer: &Layer<'_>,
    form: &ThresholdForm,
    selected: &Selected,
    inputs: &Tensor,
    grad_reached: &Tensor,
    context: &StepContext<'_>,
) -> Result<(LayerGradients, Tensor)> {
    let (penalty, mean_rows) = (context.penalty, context.mean_rows as f64);
    let Selected { entries, gaps, window } = selected;
    let norms = norms(layer);
    let tanh = entries.of_features(&(&norms * penalty.tanh_scale)).g_mul_(&entries.acts).tanh_();
    let sparsity = tanh.sum(None::<Kind>) * (penalty.lambda / mean_rows);
    let preact = (gaps * &norms).sum(None::<Kind>) * (penalty.mu / mean_rows);
    let back = Back {
        layer,
        entries,
        grad_reached,
        pull: &norms * (penalty.mu / mean_rows),
        sparsity_slopes: &norms * (penalty.lambda * penalty.tanh_scale / mean_rows),
        grad_acts: grad_acts(layer, entries, grad_reached)?,
        slopes: tanh.square().neg_().g_add_scalar_(1.0),
        norms,
    };
    let grad_pre = entries.of_features(&back.sparsity_slopes).g_mul_(&back.slopes).g_add_(&back.grad_acts).g_mul_(&entries.active);
    let [grad_pre_sums, slope_sums, active_rows] =
        rows::totals(&[grad_pre.shallow_clone(), &entries.acts * &back.slopes, entries.active.to_kind(grad_pre.kind())], &entries.offsets)?;
    let silent = rows::counts(&entries.offsets, grad_pre.kind()).neg().g_add_scalar_(inputs.size()[0]);
    let grad_norms = slope_sums * (penalty.lambda * penalty.tanh_scale / mean_rows) + gaps * (penalty.mu / mean_rows);
    let grads = LayerGradients {
        sparsity,
        preact,
        w_enc: back.w_enc(&grad_pre, inputs)?,
        b_enc: grad_pre_sums - &back.pull * &silent,
        w_dec: back.w_dec(&grad_norms)?,
        own: back.own(form, window.as_ref(), &silent)?,
    };
    Ok((grads, active_rows))
}

impl Entries {
    /// Of numbers of features, that of each entry's.
    fn of_features(&self, numbers: &Tensor) -> Tensor {
        numbers.index_select(0, &self.features)
    }
}

/// The norm of each feature's decoder, without its square in memory.
fn norms(layer: &Layer<'_>) -> Tensor {
    let parts: Vec<Tensor> = layer.decoder_parts().map(|(_, part)| part.norm_scalaropt_dim(2.0, 1, false)).collect();
    Tensor::stack(&parts, 0).norm_scalaropt_dim(2.0, 0, false)
}

fn grad_acts(layer: &Layer<'_>, entries: &Entries, grad_reached: &Tensor) -> Result<Tensor> {
    let mut sum = entries.acts.zeros_like();
    for (columns, decoder) in layer.decoder_parts() {
        let of_part = grad_reached.narrow(1, columns.start, columns.end - columns.start);
        sum += rows::products(&of_part, &entries.rows, &decoder, &entries.features)?;
    }
    Ok(sum)
}

impl Back<'_> {
    /// The pull on all rows, taken back at the entries, and the gradient there.
    fn w_enc(&self, grad_pre: &Tensor, inputs: &Tensor) -> Result<Tensor> {
        let weights = grad_pre + self.entries.of_features(&self.pull);
        let mut w_enc = rows::sums(inputs, &self.entries.rows, &self.entries.offsets, Some(&weights))?;
        let all_rows = inputs.sum_dim_intlist(0, false, None::<Kind>);
        Ok(w_enc.f_addr_(&self.pull.neg(), &all_rows)?)
    }

    fn w_dec(&self, grad_norms: &Tensor) -> Result<Tensor> {
        // A feature whose decoder is all zero has no direction to shrink along, and no gradient through its norm.
        let per_norm = (grad_norms / &self.norms).where_self(&self.norms.gt(0.0), &self.norms.zeros_like());
        let Entries { rows, offsets, acts, .. } = self.entries;
        let w_dec = rows::sums(self.grad_reached, rows, offsets, Some(acts))?;
        for (columns, decoder) in self.layer.decoder_parts() {
            let _ = w_dec.narrow(1, columns.start, columns.end - columns.start).f_addcmul_(&decoder, &per_norm.unsqueeze(1))?;
        }
        Ok(w_dec.f_view_as(&self.layer.w_dec)?)
    }

    /// The gradient of the activation's own parameter.
    fn own(&self, form: &ThresholdForm, window: Option<&Window>, silent: &Tensor) -> Result<Vec<Tensor>> {
        if self.layer.own.len() != usize::from(form.trained.is_some()) {
            return Err(Error::Invalid(format!("the activation's threshold form does not train its {} parameters", self.layer.own.len())));
        }
        let (Some(TrainedThreshold { bandwidth, slope }), Some(window)) = (&form.trained, window) else { return Ok(Vec::new()) };
        let through_jump = self.near(window)? / *bandwidth;
        let through_jump = form.thresholds.as_ref().map_or_else(|| through_jump.zeros_like(), |theta| &through_jump * wide(theta));
        Ok(vec![(&self.pull * silent - through_jump) * wide(slope)])
    }

    /// Sum over the window of the gradient to the activations, penalty included: `[d_features]`.
    ///
    /// Where a feature's window is turned, `dL/da` is summed over all rows by one product, and taken back out of the window.
    fn near(&self, window: &Window) -> Result<Tensor> {
        let entries = self.entries;
        let near = entries.near.as_ref().map_or_else(|| entries.acts.zeros_like(), |near| near.to_kind(entries.acts.kind()));
        let mut signed = &near - entries.of_features(&window.turned);
        let penalty = entries.of_features(&self.sparsity_slopes).g_mul_(&self.slopes).g_mul_(&near);
        let [at_entries] = rows::totals(&[signed.g_mul_(&self.grad_acts).g_add_(&penalty)], &entries.offsets)?;
        let sign = 1.0 - &window.turned * 2.0;
        let below = window.sums(self.layer, self.grad_reached)?.g_mul_(&sign) + &self.sparsity_slopes * &window.silent;
        Ok(at_entries + below + self.over_all_rows().g_mul_(&window.turned))
    }

    /// The sum of `dL/da` over all rows: `[d_features]`.
    fn over_all_rows(&self) -> Tensor {
        let all_rows = self.grad_reached.sum_dim_intlist(0, false, None::<Kind>);
        let part = |(columns, decoder): (std::ops::Range<i64>, Tensor)| {
            decoder.mv(&all_rows.narrow(0, columns.start, columns.end - columns.start))
        };
        self.layer.decoder_parts().map(part).fold(self.norms.zeros_like(), |sum, part| sum + part)
    }
}
