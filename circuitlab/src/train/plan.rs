//! What a run would cost, found out without starting it.

use serde::Serialize;

use super::config::TrainConfig;
use super::schedule::Schedule;
use super::source;
use super::state::Parts;
use super::trainer::{TrainRequest, resolve};
use crate::Result;

/// The cost of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The resolved config.
    pub config: TrainConfig,
    /// Numbers that are trained.
    pub parameters: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Rows of the run, those of later epochs counted again.
    pub rows: u64,
    /// About how much memory each rank takes: parameters, gradients, both moments, a batch's activations, and the chunks that rows
    /// are mixed from.
    pub memory_bytes: u64,
    /// Size of a checkpoint.
    pub checkpoint_bytes: u64,
    /// Floating-point operations of the whole run's products, all of them dense.
    pub dense_flop: f64,
}

/// Checks all that [`train`](super::train) checks before it begins, and adds up the cost. Writes nothing.
///
/// # Errors
/// Those of [`train`](super::train).
pub fn plan(request: &TrainRequest<'_>) -> Result<Plan> {
    let config = resolve(request)?;
    let source = source::open(request, &config)?;
    let schedule = Schedule::new(&config, source.count())?;
    let Parts { transcoder, activation, dims, .. } = Parts::build(request.registry, &config, &source)?;
    let shapes = transcoder.parameters(dims, &*activation)?;
    let parameters: u64 = shapes.iter().map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum();
    let value_bytes = tch::Kind::from(config.compute.dtype).elt_size_in_bytes() as u64;
    let batch_rows = config.data.batch_rows as u64;
    // Pre-activations, activations and their gradients, of all layers at once.
    let activations = 3 * batch_rows * dims.layers as u64 * dims.d_features as u64;
    // One window of chunks is read while another is trained on.
    let windows = 2 * source.window_bytes(config.data.window_chunks);
    // Per source layer: the encoder's product and its gradient, and for each target layer the decoder's and its two gradients.
    let products =
        (0..dims.layers).map(|source| Ok(2 + 3 * transcoder.targets(dims, source)?.len())).sum::<circuitlab_core::Result<usize>>()?;
    let rows = schedule.steps * batch_rows;
    Ok(Plan {
        parameters,
        steps: schedule.steps,
        rows,
        memory_bytes: value_bytes * (4 * parameters + activations) + windows,
        checkpoint_bytes: value_bytes * 4 * parameters,
        dense_flop: 2.0 * rows as f64 * (dims.d_model * dims.d_features * products) as f64,
        config,
    })
}
