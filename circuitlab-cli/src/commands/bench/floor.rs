//! What a training step cannot be faster than: the encoder's products, and one pass over the optimiser's state.

use std::hint::black_box;
use std::time::Instant;

use circuitlab_core::{Batch, Parameters};
use tch::Tensor;

use super::samples::Samples;

/// Bytes of a parameter that an optimiser's step moves: parameter and two moments read and written, the gradient read.
const BYTES: f64 = 28.0;

/// More than caches hold, and little enough to make room for: bytes of what is copied.
const COPIED_BYTES: i64 = 1 << 28;

/// Measured beside the steps, with the same threads.
pub(super) struct Floor {
    encoders: Vec<Tensor>,
    inputs: Vec<Tensor>,
    products: Tensor,
    from: Tensor,
    to: Tensor,
    parameters: f64,
    encoder_s: Vec<f64>,
    bytes_per_s: Vec<f64>,
}

impl Floor {
    pub(super) fn new(params: &Parameters, batch: &Batch) -> Self {
        let named =
            |(spec, value): (&circuitlab_core::ParameterSpec, &Tensor)| spec.name.starts_with("W_enc").then(|| value.shallow_clone());
        let encoders: Vec<Tensor> = params.specs().iter().zip(params.values()).filter_map(named).collect();
        let inputs: Vec<Tensor> = (0..encoders.len()).map(|layer| batch.inputs.select(1, layer as i64).contiguous()).collect();
        let features = encoders.first().map_or(0, |encoder| encoder.size()[0]);
        let options = (batch.inputs.kind(), batch.inputs.device());
        let numbers = COPIED_BYTES / options.0.elt_size_in_bytes() as i64;
        Self {
            encoders,
            inputs,
            products: Tensor::zeros([batch.inputs.size()[0], features], options),
            from: Tensor::ones([numbers], options),
            to: Tensor::zeros([numbers], options),
            parameters: params.count() as f64,
            encoder_s: Vec::new(),
            bytes_per_s: Vec::new(),
        }
    }

    pub(super) fn measure(&mut self) {
        let began = Instant::now();
        for (encoder, inputs) in self.encoders.iter().zip(&self.inputs) {
            let _ = black_box(inputs.mm_out(&self.products, &encoder.tr()));
        }
        self.encoder_s.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        self.to.copy_(black_box(&self.from));
        self.bytes_per_s.push(2.0 * COPIED_BYTES as f64 / began.elapsed().as_secs_f64());
    }

    /// Seconds of the encoder's products alone; the first round is not counted.
    pub(super) fn encoder_s(&self) -> Samples {
        Samples::new(self.encoder_s.iter().skip(1).copied())
    }

    /// Bytes that a copy reads and writes in a second.
    pub(super) fn bytes_per_s(&self) -> Samples {
        Samples::new(self.bytes_per_s.iter().skip(1).copied())
    }

    /// Seconds that no step is below.
    pub(super) fn seconds(&self) -> f64 {
        self.encoder_s().median() + BYTES * self.parameters / self.bytes_per_s().median()
    }
}
