//! What an evaluation found.

use circuitlab_core::ModelInfo;
use serde::Serialize;

use super::reconstruction::Reconstruction;
use crate::saved::SavedTranscoder;

/// A feature that fires on more than this share of rows is dense.
const DENSE: f64 = 0.1;

/// Bounds of the firing-frequency histogram: powers of ten from 1e-6 to 1, half a decade apart.
const BINS: usize = 12;

/// An evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The transcoder's folder.
    pub transcoder: String,
    /// The language model's name.
    pub model: String,
    /// Rows that count: tokens that are not special.
    pub rows: u64,
    /// Features of each layer.
    pub d_features: usize,
    /// Explained variance over all layers, each weighted so that its rows' mean norm is the same, as in training.
    pub explained_variance: f64,
    /// One minus that.
    pub normalised_mse: f64,
    /// Mean of the layers' explained variances.
    pub explained_variance_mean_of_layers: f64,
    /// Explained variance over all layers in raw units, in which layers of large norm weigh most.
    pub explained_variance_raw: f64,
    /// Active features per row, all layers together.
    pub l0: f64,
    /// Active features per row, mean of the layers.
    pub l0_per_layer: f64,
    /// Features that fired on no row.
    pub dead_features: usize,
    /// Features that fired on more than a tenth of the rows.
    pub dense_features: usize,
    /// Layer by layer.
    pub layers: Vec<LayerReport>,
    /// What the model's predictions lose.
    pub faithfulness: Faithfulness,
}

/// One target layer's reconstruction and one source layer's features.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// `1 - sum |y - y_hat|^2 / sum |y - mean(y)|^2`, the mean over all rows.
    pub explained_variance: f64,
    /// One minus that.
    pub normalised_mse: f64,
    /// Active features per row.
    pub l0: f64,
    /// Features that fired on no row.
    pub dead_features: usize,
    /// Features that fired on more than a tenth of the rows.
    pub dense_features: usize,
    /// How many features fire how often.
    pub frequency_histogram: Vec<FrequencyBin>,
}

/// A bin of the firing-frequency histogram.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FrequencyBin {
    /// Lowest share of rows, included; 0 for the features that never fired and the rarest ones.
    pub from: f64,
    /// Highest share of rows, excluded but for 1.
    pub to: f64,
    /// Features in it.
    pub features: usize,
}

/// What the model's predictions lose when MLPs are replaced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Faithfulness {
    /// Tokens predicted.
    pub tokens: u64,
    /// Cross-entropy of the model itself, nats per token.
    pub model_cross_entropy: f64,
    /// All MLPs replaced at once.
    pub all: SpliceReport,
    /// One MLP replaced at a time.
    pub layers: Vec<SpliceReport>,
}

/// A replacement and the two ablations that it is measured against.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpliceReport {
    /// By the transcoder.
    pub spliced: Loss,
    /// By nothing.
    pub zero_ablation: Loss,
    /// By each layer's mean output.
    pub mean_ablation: Loss,
    /// `(zero - spliced) / (zero - model)` of the cross-entropies.
    pub recovered_from_zero: f64,
    /// `(mean - spliced) / (mean - model)` of the cross-entropies.
    pub recovered_from_mean: f64,
}

/// Nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Loss {
    /// Cross-entropy.
    pub cross_entropy: f64,
    /// KL divergence of the replaced model's predictions from the model's own.
    pub kl: f64,
}

impl Report {
    pub(super) fn new(saved: &SavedTranscoder, model: &ModelInfo, sums: &Reconstruction, faithfulness: Faithfulness) -> Self {
        let rows = sums.rows.max(1) as f64;
        let layers: Vec<LayerReport> = (0..sums.fired.len()).map(|layer| layer_report(sums, layer, rows)).collect();
        let weighted = |values: &[f64], weight: &dyn Fn(usize) -> f64| {
            values.iter().enumerate().map(|(layer, value)| value * weight(layer)).sum::<f64>()
        };
        let total = |weight: &dyn Fn(usize) -> f64| explained(weighted(&sums.squared_error, weight), weighted(&sums.variance, weight));
        let equal_norms = |layer: usize| 1.0 / sums.mean_norm[layer].max(f64::MIN_POSITIVE).powi(2);
        let explained_variance = total(&equal_norms);
        let mean = |of: &dyn Fn(&LayerReport) -> f64| layers.iter().map(of).sum::<f64>() / layers.len().max(1) as f64;
        Self {
            transcoder: saved.folder.display().to_string(),
            model: model.name.clone(),
            rows: sums.rows,
            d_features: saved.dims.d_features,
            explained_variance,
            normalised_mse: 1.0 - explained_variance,
            explained_variance_mean_of_layers: mean(&|layer| layer.explained_variance),
            explained_variance_raw: total(&|_| 1.0),
            l0: layers.iter().map(|layer| layer.l0).sum(),
            l0_per_layer: mean(&|layer| layer.l0),
            dead_features: layers.iter().map(|layer| layer.dead_features).sum(),
            dense_features: layers.iter().map(|layer| layer.dense_features).sum(),
            layers,
            faithfulness,
        }
    }
}

fn explained(error: f64, variance: f64) -> f64 {
    if variance > 0.0 { 1.0 - error / variance } else { f64::NAN }
}

fn layer_report(sums: &Reconstruction, layer: usize, rows: f64) -> LayerReport {
    let explained_variance = explained(sums.squared_error[layer], sums.variance[layer]);
    let fired = &sums.fired[layer];
    LayerReport {
        explained_variance,
        normalised_mse: 1.0 - explained_variance,
        l0: fired.iter().sum::<f64>() / rows,
        dead_features: fired.iter().filter(|fired| **fired == 0.0).count(),
        dense_features: fired.iter().filter(|fired| **fired / rows > DENSE).count(),
        frequency_histogram: histogram(fired, rows),
    }
}

fn histogram(fired: &[f64], rows: f64) -> Vec<FrequencyBin> {
    let edge = |bin: usize| 10_f64.powf((bin as f64 - BINS as f64) / 2.0);
    let mut bins: Vec<FrequencyBin> =
        (0..BINS).map(|bin| FrequencyBin { from: if bin == 0 { 0.0 } else { edge(bin) }, to: edge(bin + 1), features: 0 }).collect();
    for frequency in fired.iter().map(|fired| fired / rows) {
        let bin = bins.iter().rposition(|bin| frequency >= bin.from).unwrap_or(0);
        bins[bin].features += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_in_one_bin() {
        let bins = histogram(&[0.0, 2.0, 20.0, 1000.0, 999.0], 1000.0);
        assert_eq!(bins.iter().map(|bin| bin.features).sum::<usize>(), 5);
        assert_eq!((bins[0].from, bins[BINS - 1].to), (0.0, 1.0));
        assert_eq!(bins[BINS - 1].features, 2, "those that fire on more than 10^-0.5 of the rows");
        let near = |frequency: f64| bins.iter().find(|bin| bin.from <= frequency && frequency < bin.to).expect("a bin").features;
        assert_eq!((near(0.002), near(0.02)), (1, 1));
    }
}
