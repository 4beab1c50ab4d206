//! Rotary position embedding.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use super::description::{RotaryForm, RotaryScaling};
use super::norm::widened;

/// The frequencies of a rotary embedding.
#[derive(Debug)]
pub(super) struct Rotary {
    pairs: i64,
    frequencies: Tensor,
    /// Those of contexts that are longer than so many positions, where they differ.
    beyond: Option<(i64, Tensor)>,
    amplitude: f64,
    kind: Kind,
}

/// Cosines and sines of the angles of the first positions.
///
/// # Shapes
/// Both `[position, 1, pairs]`.
#[derive(Debug)]
pub(super) struct Angles {
    pairs: i64,
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    pub(super) fn new(form: &RotaryForm, device: Device, kind: Kind) -> Self {
        // Angles of long contexts need f32 whatever the model computes in.
        let tensor = |values: Vec<f64>| Tensor::from_slice(&values).to_kind(widened(kind)).to_device(device);
        let beyond = match &form.scaling {
            RotaryScaling::Long { long, original, .. } => Some((*original as i64, tensor(divided(form, long)))),
            _ => None,
        };
        Self { pairs: form.pairs() as i64, frequencies: tensor(frequencies(form)), beyond, amplitude: form.amplitude, kind }
    }

    /// The angles of `positions` positions from the one numbered `first` on.
    pub(super) fn angles(&self, first: i64, positions: i64) -> Angles {
        let frequencies = match &self.beyond {
            Some((original, beyond)) if first + positions > *original => beyond,
            _ => &self.frequencies,
        };
        let at = Tensor::arange_start(first, first + positions, (frequencies.kind(), frequencies.device()));
        let angles = (at.unsqueeze(-1) * frequencies).unsqueeze(1);
        let scaled = |values: Tensor| (values * self.amplitude).to_kind(self.kind);
        Angles { pairs: self.pairs, cos: scaled(angles.cos()), sin: scaled(angles.sin()) }
    }
}

impl Angles {
    /// Turns the pairs `(i, i + pairs)` of every head; the entries after them stay.
    ///
    /// # Shapes
    /// `x: [batch, position, head, d_head]`, and the same back.
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        self.turn(x, &self.sin)
    }

    /// The adjoint of [`rotate`](Self::rotate).
    pub(super) fn rotate_back(&self, x: &Tensor) -> Tensor {
        self.turn(x, &-&self.sin)
    }

    /// The angles of some of the positions: `[rows]`.
    pub(super) fn at(&self, positions: &Tensor) -> Self {
        Self { pairs: self.pairs, cos: self.cos.index_select(0, positions), sin: self.sin.index_select(0, positions) }
    }

    fn turn(&self, x: &Tensor, sin: &Tensor) -> Tensor {
        let first = x.narrow(-1, 0, self.pairs);
        let second = x.narrow(-1, self.pairs, self.pairs);
        let rest = x.narrow(-1, 2 * self.pairs, x.size()[3] - 2 * self.pairs);
        let turned = [&first * &self.cos - &second * sin, &second * &self.cos + &first * sin, rest];
        Tensor::cat(&turned, -1)
    }
}

/// Angle per position of each pair, before any stretching.
fn plain(form: &RotaryForm) -> impl Iterator<Item = f64> {
    (0..form.pairs()).map(|pair| form.theta.powf(-2.0 * pair as f64 / form.dims as f64))
}

/// Angle per position of each pair.
fn frequencies(form: &RotaryForm) -> Vec<f64> {
    match &form.scaling {
        RotaryScaling::None => plain(form).collect(),
        RotaryScaling::Linear { factor } => plain(form).map(|frequency| frequency / factor).collect(),
        RotaryScaling::Llama3 { factor, low, high, original } => {
            let mix = |frequency: f64| {
                // How often a pair turns within the original context, on a scale from 0 at `low` to 1 at `high`.
                let turns = original * frequency / (2.0 * PI);
                mixed(frequency, *factor, ((turns - low) / (high - low)).clamp(0.0, 1.0))
            };
            plain(form).map(mix).collect()
        }
        RotaryScaling::Yarn { factor, fast, slow, original, truncate } => {
            // The pair, as a fraction, that turns so many times within the original context.
            let pair = |turns: f64| form.dims as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * form.theta.ln());
            let (first, last) = (pair(*fast), pair(*slow));
            let (first, last) = if *truncate { (first.floor(), last.ceil()) } else { (first, last) };
            let (first, last) = (first.max(0.0), last.min(form.dims as f64 - 1.0));
            // A ramp over no pair at all is a step.
            let length = if (last - first).abs() < f64::EPSILON { 0.001 } else { last - first };
            let mix = |(pair, frequency)| mixed(frequency, *factor, 1.0 - ((pair as f64 - first) / length).clamp(0.0, 1.0));
            plain(form).enumerate().map(mix).collect()
        }
        RotaryScaling::Long { short, .. } => divided(form, short),
    }
}

/// A frequency of which the share `kept` stays and the rest is divided.
fn mixed(frequency: f64, factor: f64, kept: f64) -> f64 {
    frequency * (kept + (1.0 - kept) / factor)
}

fn divided(form: &RotaryForm, divisors: &[f64]) -> Vec<f64> {
    plain(form).zip(divisors).map(|(frequency, divisor)| frequency / divisor).collect()
}
