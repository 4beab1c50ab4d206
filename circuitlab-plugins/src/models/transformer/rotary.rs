//! Rotary position embedding.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use super::description::{RotaryForm, RotaryScaling};
use super::norm::widened;

/// The frequencies of a rotary embedding.
#[derive(Debug)]
pub(super) struct Rotary {
    dims: i64,
    frequencies: Tensor,
    kind: Kind,
}

/// Cosines and sines of the angles of the first positions.
///
/// # Shapes
/// Both `[position, 1, dims / 2]`.
#[derive(Debug)]
pub(super) struct Angles {
    dims: i64,
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub(super) fn new(form: &RotaryForm, device: Device, kind: Kind) -> Self {
        // Angles of long contexts need f32 whatever the model computes in.
        let frequencies = Tensor::from_slice(&frequencies(form)).to_kind(widened(kind)).to_device(device);
        Self { dims: form.dims as i64, frequencies, kind }
    }

    pub(super) fn angles(&self, positions: i64) -> Angles {
        let at = Tensor::arange(positions, (self.frequencies.kind(), self.frequencies.device()));
        let angles = (at.unsqueeze(-1) * &self.frequencies).unsqueeze(1);
        Angles { dims: self.dims, cos: angles.cos().to_kind(self.kind), sin: angles.sin().to_kind(self.kind) }
    }
}

impl Angles {
    /// Turns the pairs `(i, i + dims / 2)` of every head; entries from `dims` on stay.
    ///
    /// # Shapes
    /// `x: [batch, position, head, d_head]`, and the same back.
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        let half = self.dims / 2;
        let first = x.narrow(-1, 0, half);
        let second = x.narrow(-1, half, half);
        let rest = x.narrow(-1, self.dims, x.size()[3] - self.dims);
        let turned = [&first * &self.cos - &second * &self.sin, &second * &self.cos + &first * &self.sin, rest];
        Tensor::cat(&turned, -1)
    }
}

/// Angle per position of each pair.
fn frequencies(form: &RotaryForm) -> Vec<f64> {
    let plain = (0..form.dims / 2).map(|pair| form.theta.powf(-2.0 * pair as f64 / form.dims as f64));
    plain.map(|frequency| stretched(frequency, form.scaling)).collect()
}

fn stretched(frequency: f64, scaling: RotaryScaling) -> f64 {
    match scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 { factor, low, high, original } => {
            // How often a pair turns within the original context, on a scale from 0 at `low` to 1 at `high`.
            let turns = original * frequency / (2.0 * PI);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            frequency * (kept + (1.0 - kept) / factor)
        }
    }
}
