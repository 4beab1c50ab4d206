//! What the language model's predictions lose when MLP outputs are replaced.

use std::ops::Range;

use circuitlab_core::hooks::NoHooks;
use circuitlab_core::{Error as CoreError, HookVisitor, LanguageModel};
use tch::{Kind, Tensor};

use super::batch::{EvalBatch, EvalText, pick};
use super::report::{Faithfulness, Loss, SpliceReport};
use super::splice::{Splice, Stand};
use crate::saved::SavedTranscoder;
use crate::{Progress, Result};

/// Cross-entropy and KL divergence, summed over tokens.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    cross_entropy: f64,
    kl: f64,
}

pub(super) fn measure(
    saved: &SavedTranscoder,
    model: &dyn LanguageModel,
    text: &EvalText,
    means: &[Tensor],
    progress: &dyn Progress,
) -> Result<Faithfulness> {
    let layers = saved.dims.layers;
    let hooks = saved.hooks()?;
    let batches = text.batches(model.placement().0)?;
    let everything = 0..layers;
    let places: Vec<Range<usize>> = std::iter::once(everything).chain((0..layers).map(|layer| layer..layer + 1)).collect();
    let stands = [Stand::Transcoder(saved), Stand::Zero, Stand::Mean(means)];
    let mut model_sum = Sums::default();
    let mut sums = vec![[Sums::default(); 3]; places.len()];
    let mut tokens = 0;
    progress.begin("splice", batches.len() as u64, "batches");
    for (done, batch) in batches.iter().enumerate() {
        let own = predictions(model, batch, &mut NoHooks)?;
        model_sum.add(batch, &own, &own);
        for (place, sums) in places.iter().zip(&mut sums) {
            for (stand, sum) in stands.iter().zip(sums) {
                let mut splice = Splice::new(*stand, place.clone(), hooks, &batch.rows);
                sum.add(batch, &own, &predictions(model, batch, &mut splice)?);
            }
        }
        tokens += batch.expected.numel() as u64;
        progress.at(done as u64 + 1, "");
    }
    progress.end();
    let model_loss = model_sum.cross_entropy / tokens.max(1) as f64;
    let mut reports = sums.iter().map(|sums| splice_report(sums, tokens, model_loss));
    let all = reports.next().ok_or_else(|| CoreError::Invalid("a model without layers".to_owned()))?;
    Ok(Faithfulness { tokens, model_cross_entropy: model_loss, all, layers: reports.collect() })
}

/// Log-probabilities at the positions that predict a token: `[predicting, vocabulary]`, f32.
fn predictions(model: &dyn LanguageModel, batch: &EvalBatch, visitor: &mut dyn HookVisitor) -> Result<Tensor> {
    let logits = model.forward(&batch.tokens, visitor)?.ok_or_else(|| CoreError::Invalid("the model gave no logits".to_owned()))?;
    Ok(pick(&logits, &batch.predicting).log_softmax(-1, Kind::Float))
}

impl Sums {
    /// `own` are the model's log-probabilities, `spliced` those after the replacement.
    fn add(&mut self, batch: &EvalBatch, own: &Tensor, spliced: &Tensor) {
        let expected = spliced.gather(1, &batch.expected.unsqueeze(1), false);
        self.cross_entropy -= expected.sum(Kind::Double).double_value(&[]);
        self.kl += (own.exp() * (own - spliced)).sum(Kind::Double).double_value(&[]);
    }
}

fn splice_report(sums: &[Sums; 3], tokens: u64, model_loss: f64) -> SpliceReport {
    let [spliced, zero, mean] =
        sums.map(|sum| Loss { cross_entropy: sum.cross_entropy / tokens.max(1) as f64, kl: sum.kl / tokens.max(1) as f64 });
    let recovered = |ablated: f64| (ablated - spliced.cross_entropy) / (ablated - model_loss);
    SpliceReport {
        recovered_from_zero: recovered(zero.cross_entropy),
        recovered_from_mean: recovered(mean.cross_entropy),
        spliced,
        zero_ablation: zero,
        mean_ablation: mean,
    }
}
