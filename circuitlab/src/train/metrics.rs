//! The figures of a run, gathered over the steps between two records.
//!
//! Definitions, over the rows of the interval and in f32 or better: explained variance of a layer is
//! `1 - sum |y - y_hat|^2 / sum |y - mean(y)|^2` with the mean over each batch; the total sums both over all layers, in
//! normalised units, in which every layer weighs about the same. L0 is the mean number of active features per row. A feature
//! is dead that was silent on a set number of rows in a row.

use circuitlab_core::{Batch, StepOutput};
use tch::{Kind, Tensor};

use crate::sink::{Record, names};

/// The figures of one step beside its losses.
#[derive(Debug, Clone, Copy)]
pub struct StepMetrics {
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The step's weight of the sparsity term.
    pub lambda: f64,
}

/// Sums over the steps since the last record.
#[derive(Debug, Default)]
pub struct Interval {
    steps: u64,
    rows: u64,
    losses: [f64; 3],
    gradient_norm: f64,
    squared_error: Vec<f64>,
    variance: Vec<f64>,
    active: Vec<f64>,
}

impl Interval {
    /// Takes in one step.
    pub fn add(&mut self, batch: &Batch, output: &StepOutput, step: StepMetrics) {
        let rows = batch.targets.size()[0];
        let centred = &batch.targets - batch.targets.mean_dim([0].as_slice(), true, None::<Kind>);
        let variance = centred.square().sum_dim_intlist([0, 2].as_slice(), false, Kind::Double);
        self.steps += 1;
        self.rows += rows as u64;
        for (sum, term) in self.losses.iter_mut().zip([&output.mse, &output.sparsity, &output.preact]) {
            *sum += term.double_value(&[]);
        }
        self.gradient_norm += step.gradient_norm;
        add(&mut self.squared_error, &output.squared_error);
        add(&mut self.variance, &variance);
        add(&mut self.active, &output.active_rows.sum_dim_intlist(1, false, Kind::Double));
    }

    /// The record of the interval, after which the next one begins. `dead` is the number of dead features of each layer.
    pub fn finish(&mut self, step: u64, last: StepMetrics, dead: &[i64]) -> Record {
        let done = std::mem::take(self);
        let steps = done.steps.max(1) as f64;
        let [mse, sparsity, preact] = done.losses.map(|sum| sum / steps);
        let explained = |error: f64, variance: f64| if variance > 0.0 { 1.0 - error / variance } else { f64::NAN };
        let total = explained(done.squared_error.iter().sum(), done.variance.iter().sum());
        let l0: Vec<f64> = done.active.iter().map(|active| active / done.rows.max(1) as f64).collect();
        let mut record = Record::new(step)
            .with(names::LOSS_TOTAL, mse + sparsity + preact)
            .with("loss/mse", mse)
            .with("loss/sparsity", sparsity)
            .with("loss/preact", preact)
            .with(names::EXPLAINED_VARIANCE, total)
            .with(names::NORMALISED_MSE, 1.0 - total)
            .with(names::L0, l0.iter().sum())
            .with(names::DEAD_FEATURES, dead.iter().sum::<i64>() as f64)
            .with("metrics/gradient_norm", done.gradient_norm / steps)
            .with(names::LEARNING_RATE, last.learning_rate)
            .with(names::LAMBDA, last.lambda);
        for (layer, (error, variance)) in done.squared_error.iter().zip(&done.variance).enumerate() {
            record.push(names::of_layer(names::EXPLAINED_VARIANCE, layer), explained(*error, *variance));
            record.push(names::of_layer(names::L0, layer), l0[layer]);
            record.push(names::of_layer(names::DEAD_FEATURES, layer), dead.get(layer).copied().unwrap_or_default() as f64);
        }
        record
    }
}

fn add(sums: &mut Vec<f64>, values: &Tensor) {
    sums.resize(values.numel(), 0.0);
    for (layer, sum) in sums.iter_mut().enumerate() {
        *sum += values.double_value(&[layer as i64]);
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn an_interval_sums_up_as_defined() {
        let options = (Kind::Float, Device::Cpu);
        let targets = Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 2.0]).view([2, 1, 2]);
        let batch = Batch { inputs: Tensor::zeros([2, 1, 2], options), targets };
        let output = StepOutput {
            mse: Tensor::from(0.5_f32),
            sparsity: Tensor::from(0.25_f32),
            preact: Tensor::from(0.0_f32),
            gradients: Vec::new(),
            gradient_squares: None,
            squared_error: Tensor::from_slice(&[1.0_f32]),
            active_rows: Tensor::from_slice(&[1.0_f32, 2.0, 0.0]).view([1, 3]),
            stages: Vec::new(),
        };
        let step = StepMetrics { gradient_norm: 3.0, learning_rate: 0.1, lambda: 2.0 };
        let mut interval = Interval::default();
        interval.add(&batch, &output, step);
        interval.add(&batch, &output, step);
        let record = interval.finish(2, step, &[1]);
        // The variance of each batch is 4 around its mean row (1, 1); the error is 1.
        for (name, want) in [
            ("loss/total", 0.75),
            ("metrics/explained_variance", 0.75),
            ("metrics/normalised_mse", 0.25),
            ("metrics/l0", 1.5),
            ("l0/layer_0", 1.5),
            ("metrics/dead_features", 1.0),
            ("metrics/gradient_norm", 3.0),
        ] {
            assert_eq!(record.get(name), Some(want), "{name}");
        }
        assert_eq!(interval.finish(3, step, &[0]).get("metrics/l0"), Some(0.0), "the next interval is empty");
    }
}
