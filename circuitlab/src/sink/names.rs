//! The names under which a run's figures are written. Plots and readers find them by these.

/// The sum of all loss terms; the terms beside it are `loss/...` too.
pub const LOSS_TOTAL: &str = "loss/total";
/// Explained variance over all layers, 1 at best.
pub const EXPLAINED_VARIANCE: &str = "metrics/explained_variance";
/// Normalised mean squared error: one minus the explained variance.
pub const NORMALISED_MSE: &str = "metrics/normalised_mse";
/// Active features per token, summed over layers.
pub const L0: &str = "metrics/l0";
/// Features that have been silent for the configured number of tokens, over all layers.
pub const DEAD_FEATURES: &str = "metrics/dead_features";
/// The learning rate of the step.
pub const LEARNING_RATE: &str = "schedule/learning_rate";
/// The sparsity weight of the step.
pub const LAMBDA: &str = "schedule/lambda";
/// Tokens trained on per second, over all ranks.
pub const TOKENS_PER_SECOND: &str = "throughput/tokens_per_second";
/// The share of the time that a run waited for rows of its cache.
pub const DATA_WAIT_SHARE: &str = "throughput/data_wait_share";
/// Bytes that the first rank sends to others in a step, as its strategy counts them.
pub const SENT_BYTES_PER_STEP: &str = "communication/bytes_per_step";
/// Model FLOP utilisation, as a share of the device's peak.
pub const MODEL_FLOP_UTILISATION: &str = "throughput/model_flop_utilisation";

/// The name of one layer's share of a figure: `metrics/l0` of layer 3 is `l0/layer_3`.
pub fn of_layer(name: &str, layer: usize) -> String {
    format!("{}/layer_{layer}", last_part(name))
}

/// The layer that a name speaks of, if it is a layer's share of `name`.
pub(super) fn layer_of(name: &str, whole: &str) -> Option<usize> {
    name.strip_prefix(last_part(whole))?.strip_prefix("/layer_")?.parse().ok()
}

fn last_part(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layers_name_is_read_back() {
        assert_eq!(of_layer(EXPLAINED_VARIANCE, 3), "explained_variance/layer_3");
        assert_eq!(layer_of("explained_variance/layer_3", EXPLAINED_VARIANCE), Some(3));
        assert_eq!(layer_of("explained_variance/layer_x", EXPLAINED_VARIANCE), None);
        assert_eq!(layer_of("l0/layer_3", EXPLAINED_VARIANCE), None);
    }
}
