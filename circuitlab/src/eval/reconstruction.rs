//! How well MLP outputs are reconstructed from the model's own MLP inputs.

use circuitlab_core::{HookPoint, LanguageModel};
use tch::{Kind, Tensor};

use super::batch::{EvalText, pick};
use crate::model::Capture;
use crate::saved::SavedTranscoder;
use crate::{Error, Progress, Result};

/// Sums over all rows.
#[derive(Debug)]
pub(super) struct Reconstruction {
    pub(super) rows: u64,
    /// Squared error of each layer.
    pub(super) squared_error: Vec<f64>,
    /// Squared distance from the mean row, of each layer.
    pub(super) variance: Vec<f64>,
    /// Mean L2 norm of a row, of each layer.
    pub(super) mean_norm: Vec<f64>,
    /// Mean MLP output of each layer: `[d_model]`.
    pub(super) mean_outputs: Vec<Tensor>,
    /// On how many rows each feature fired: `[d_features]` for each layer.
    pub(super) fired: Vec<Vec<f64>>,
}

#[derive(Debug)]
struct LayerSums {
    squared_error: f64,
    /// Sum of outputs: `[d_model]`, f64.
    outputs: Tensor,
    squared_outputs: f64,
    norms: f64,
    /// `[d_features]`, f64.
    fired: Tensor,
}

pub(super) fn measure(
    saved: &SavedTranscoder,
    model: &dyn LanguageModel,
    text: &EvalText,
    progress: &dyn Progress,
) -> Result<Reconstruction> {
    let (input_hook, output_hook) = saved.hooks()?;
    let (device, _) = model.placement();
    let options = (Kind::Double, device);
    let mut sums: Vec<LayerSums> = (0..saved.dims.layers)
        .map(|_| LayerSums {
            squared_error: 0.0,
            outputs: Tensor::zeros([saved.dims.d_model as i64], options),
            squared_outputs: 0.0,
            norms: 0.0,
            fired: Tensor::zeros([saved.dims.d_features as i64], options),
        })
        .collect();
    let batches = text.batches(device)?;
    let mut rows = 0;
    progress.begin("reconstruct", batches.len() as u64, "batches");
    for (done, batch) in batches.iter().enumerate() {
        let points = (0..saved.dims.layers).flat_map(|layer| [input_hook, output_hook].map(|hook| HookPoint::block(layer, hook)));
        let mut capture = Capture::new(points).stopping();
        model.forward(&batch.tokens, &mut capture)?;
        let mut acts = Vec::with_capacity(saved.dims.layers);
        for (layer, sums) in sums.iter_mut().enumerate() {
            let inputs = pick(&capture.take(HookPoint::block(layer, input_hook))?, &batch.rows).to_kind(Kind::Float);
            let outputs = pick(&capture.take(HookPoint::block(layer, output_hook))?, &batch.rows).to_kind(Kind::Float);
            acts.push(saved.encode(layer, &inputs)?);
            let reconstructed = saved.decode(&acts, &inputs, layer)?;
            sums.add(&outputs, &reconstructed, &acts[layer]);
        }
        rows += batch.rows.numel() as u64;
        progress.at(done as u64 + 1, "");
    }
    progress.end();
    if rows < 2 {
        return Err(Error::Invalid(format!("{rows} rows of the text count, expected at least 2: its other tokens are special")));
    }
    Ok(finish(&sums, rows))
}

impl LayerSums {
    fn add(&mut self, outputs: &Tensor, reconstructed: &Tensor, acts: &Tensor) {
        let outputs = &outputs.to_kind(Kind::Double);
        let sum = |values: &Tensor| values.sum(Kind::Double).double_value(&[]);
        self.squared_error += sum(&(outputs - reconstructed).square());
        self.outputs += outputs.sum_dim_intlist(0, false, Kind::Double);
        self.squared_outputs += sum(&outputs.square());
        self.norms += sum(&outputs.square().sum_dim_intlist(1, false, Kind::Double).sqrt());
        self.fired += acts.not_equal(0.0).sum_dim_intlist(0, false, Kind::Double);
    }
}

fn finish(sums: &[LayerSums], rows: u64) -> Reconstruction {
    let count = rows.max(1) as f64;
    let each = |of: &dyn Fn(&LayerSums) -> f64| sums.iter().map(of).collect::<Vec<f64>>();
    Reconstruction {
        rows,
        squared_error: each(&|layer| layer.squared_error),
        variance: each(&|layer| layer.squared_outputs - layer.outputs.square().sum(Kind::Double).double_value(&[]) / count),
        mean_norm: each(&|layer| layer.norms / count),
        mean_outputs: sums.iter().map(|layer| (&layer.outputs / count).to_kind(Kind::Float)).collect(),
        fired: sums
            .iter()
            .map(|layer| (0..layer.fired.numel() as i64).map(|feature| layer.fired.double_value(&[feature])).collect())
            .collect(),
    }
}
