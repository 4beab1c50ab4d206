//! The figures of a run, gathered over the steps between two records.
//!
//! Definitions, over the rows of the interval and in f32 or better: explained variance of a layer is
//! `1 - sum |y - y_hat|^2 / sum |y - mean(y)|^2` with the mean over each batch; the total sums both over all layers, in
//! normalised units, in which every layer weighs about the same. L0 is the mean number of active features per row. A feature
//! is dead that was silent on a set number of rows in a row.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{ParallelismStrategy, StepOutput};
use tch::{Kind, Tensor};

use crate::Result;
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

/// Sums over the steps since the last record. They stay on the device, and are read once a record.
#[derive(Debug, Default)]
pub struct Interval {
    steps: u64,
    rows: u64,
    gradient_norm: f64,
    /// Losses, then of each layer the squared error, the variance and the active features, in 64 bits: `[3 + 3 layers]`.
    sums: Option<Tensor>,
}

/// The squared distance of this rank's rows from the mean of all ranks', of each layer and in 64 bits: `[layer]` of
/// `targets: [rows, layer, d_model]`. There are `batch_rows` on all ranks of the data axis together.
///
/// # Errors
/// What the strategy returns.
pub fn variance(targets: &Tensor, strategy: &dyn ParallelismStrategy, batch_rows: usize) -> Result<Tensor> {
    let mean = if strategy.mesh().data.size == 1 {
        targets.mean_dim([0].as_slice(), true, None::<Kind>)
    } else {
        let mut sum = targets.sum_dim_intlist([0].as_slice(), true, Kind::Double);
        strategy.sum(MeshAxis::Data, &mut sum)?;
        (sum / batch_rows as f64).to_kind(targets.kind())
    };
    let mut centred = targets - mean;
    Ok(centred.square_().sum_dim_intlist([0, 2].as_slice(), false, Kind::Double))
}

impl Interval {
    /// Takes in one step over `rows` rows of all ranks; this rank's have this [`variance`].
    pub fn add(&mut self, rows: u64, variance: &Tensor, output: &StepOutput, step: StepMetrics) {
        self.steps += 1;
        self.rows += rows;
        self.gradient_norm += step.gradient_norm;
        let wide = |tensor: &Tensor| tensor.to_kind(Kind::Double).view(-1);
        let active = output.active_rows.sum_dim_intlist(1, false, Kind::Double);
        let losses = [&output.mse, &output.sparsity, &output.preact].map(wide);
        let [mse, sparsity, preact] = losses;
        let step = Tensor::cat(&[mse, sparsity, preact, wide(&output.squared_error), wide(variance), active], 0);
        self.sums = Some(match self.sums.take() {
            Some(sums) => sums + step,
            None => step,
        });
    }

    /// The record of the interval, after which the next one begins: the same on all ranks. `dead` is the number of dead features of each
    /// layer.
    ///
    /// # Errors
    /// What the strategy returns; libtorch's, where the device fails.
    pub fn finish(&mut self, step: u64, last: StepMetrics, dead: &[i64], strategy: &dyn ParallelismStrategy) -> Result<Record> {
        let mut done = std::mem::take(self);
        let steps = done.steps.max(1) as f64;
        if let Some(sums) = &mut done.sums {
            over_ranks(sums, strategy)?;
        }
        let sums = done.sums.map_or_else(|| Ok(vec![0.0; 3]), Vec::<f64>::try_from).map_err(circuitlab_core::Error::from)?;
        let (losses, of_layers) = sums.split_at(3);
        let layers = of_layers.len() / 3;
        let (squared_error, rest) = of_layers.split_at(layers);
        let (variance, active) = rest.split_at(layers);
        let [mse, sparsity, preact] = [losses[0], losses[1], losses[2]].map(|sum| sum / steps);
        let explained = |error: f64, variance: f64| if variance > 0.0 { 1.0 - error / variance } else { f64::NAN };
        let total = explained(squared_error.iter().sum(), variance.iter().sum());
        let l0: Vec<f64> = active.iter().map(|active| active / done.rows.max(1) as f64).collect();
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
        for (layer, (error, variance)) in squared_error.iter().zip(variance).enumerate() {
            record.push(names::of_layer(names::EXPLAINED_VARIANCE, layer), explained(*error, *variance));
            record.push(names::of_layer(names::L0, layer), l0[layer]);
            record.push(names::of_layer(names::DEAD_FEATURES, layer), dead.get(layer).copied().unwrap_or_default() as f64);
        }
        Ok(record)
    }
}

/// Adds up, in place, what is of a rank's own rows and features: all but the losses.
fn over_ranks(sums: &Tensor, strategy: &dyn ParallelismStrategy) -> Result<()> {
    let layers = (sums.numel() as i64 - 3) / 3;
    for (axis, from, size) in
        [(MeshAxis::Feature, 3 + 2 * layers, strategy.mesh().feature.size), (MeshAxis::Data, 3, strategy.mesh().data.size)]
    {
        if size > 1 {
            strategy.sum(axis, &mut sums.narrow(0, from, 3 + 3 * layers - from))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Axis, Mesh};

    use super::*;

    /// A mesh on which all ranks have the same.
    #[derive(Debug)]
    struct Alike {
        data: usize,
        feature: usize,
    }

    impl ParallelismStrategy for Alike {
        fn mesh(&self) -> Mesh {
            let axis = |size| Axis { rank: 0, size };
            Mesh { data: axis(self.data), feature: axis(self.feature), sharded: false }
        }

        fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> circuitlab_core::Result<()> {
            let _ = tensor.g_mul_scalar_(self.mesh().axis(axis).size as f64);
            Ok(())
        }

        fn barrier(&self) -> circuitlab_core::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn figures_are_those_of_all_ranks() {
        let targets = Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 2.0]).view([2, 1, 2]);
        let mesh = Alike { data: 2, feature: 3 };
        let variance = variance(&targets, &mesh, 4).expect("sums");
        assert!((variance.double_value(&[0]) - 4.0).abs() < 1e-12, "the mean is that of all rows");
        let sums = Tensor::arange(9, (Kind::Double, tch::Device::Cpu));
        over_ranks(&sums, &mesh).expect("sums");
        assert_eq!(Vec::<f64>::try_from(&sums).expect("a list"), [0.0, 1.0, 2.0, 6.0, 8.0, 10.0, 12.0, 42.0, 48.0]);
    }

    #[test]
    fn an_interval_sums_up_as_defined() {
        let targets = Tensor::from_slice(&[0.0_f32, 0.0, 2.0, 2.0]).view([2, 1, 2]);
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
        let alone = Alike { data: 1, feature: 1 };
        let variance = variance(&targets, &alone, 2).expect("a CPU");
        interval.add(2, &variance, &output, step);
        interval.add(2, &variance, &output, step);
        let record = interval.finish(2, step, &[1], &alone).expect("a CPU");
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
        assert_eq!(interval.finish(3, step, &[0], &alone).expect("a CPU").get("metrics/l0"), Some(0.0), "the next interval is empty");
    }
}
