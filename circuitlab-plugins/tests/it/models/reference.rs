//! A second implementation of the forward pass: scalars, loops and f64, written from the formulas alone and sharing no
//! code with the plugins.

use std::collections::BTreeMap;
use std::f64::consts::PI;

type Vector = Vec<f64>;

/// A rotary embedding's stretching, with the names of config files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stretch {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
}

/// A transformer of either shape that the tests make.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) d_head: usize,
    pub(super) vocabulary: usize,
    /// LayerNorm, learned positions and a plain MLP; otherwise RMSNorm, rotary positions and a gated MLP.
    pub(super) gpt2: bool,
    pub(super) eps: f64,
    pub(super) theta: f64,
    pub(super) stretch: Stretch,
    pub(super) activation: &'static str,
    pub(super) scaled: bool,
    pub(super) scaled_by_layer: bool,
    /// Weights `[in][out]` and vectors, by names of this file's own: `wq.0`, `bq.0`, ..
    pub(super) weights: BTreeMap<String, Vec<Vector>>,
}

impl Model {
    /// Logits of one row of tokens: `[position][vocabulary]`.
    pub(super) fn logits(&self, tokens: &[usize]) -> Vec<Vector> {
        let mut stream: Vec<Vector> = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            let mut x = self.weights["embed"][*token].clone();
            if self.gpt2 {
                add(&mut x, &self.weights["positions"][position]);
            }
            stream.push(x);
        }
        for layer in 0..self.layers {
            let normed: Vec<Vector> = stream.iter().map(|x| self.norm(x, &format!("norm1.{layer}"))).collect();
            let attended = self.attention(&normed, layer);
            for (x, more) in stream.iter_mut().zip(&attended) {
                add(x, more);
                let normed = self.norm(x, &format!("norm2.{layer}"));
                add(x, &self.mlp(&normed, layer));
            }
        }
        let last = stream.iter().map(|x| self.norm(x, "norm_final"));
        last.map(|x| (0..self.vocabulary).map(|token| dot(&x, &self.weights["unembed"][token])).collect()).collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vector {
        let count = x.len() as f64;
        let mean = if self.gpt2 { x.iter().sum::<f64>() / count } else { 0.0 };
        let variance = x.iter().map(|entry| (entry - mean).powi(2)).sum::<f64>() / count;
        let gain = &self.weights[&format!("{name}.gain")][0];
        let mut out: Vector = x.iter().zip(gain).map(|(entry, gain)| (entry - mean) / (variance + self.eps).sqrt() * gain).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            add(&mut out, &bias[0]);
        }
        out
    }

    fn linear(&self, x: &[f64], name: &str, layer: usize) -> Vector {
        let weight = &self.weights[&format!("w{name}.{layer}")];
        let mut out = vec![0.0; weight[0].len()];
        for (entry, row) in x.iter().zip(weight) {
            for (sum, weight) in out.iter_mut().zip(row) {
                *sum += entry * weight;
            }
        }
        if let Some(bias) = self.weights.get(&format!("b{name}.{layer}")) {
            add(&mut out, &bias[0]);
        }
        out
    }

    fn attention(&self, inputs: &[Vector], layer: usize) -> Vec<Vector> {
        let width = self.d_head;
        let queries: Vec<Vector> = inputs.iter().enumerate().map(|(at, x)| self.turn(self.linear(x, "q", layer), at)).collect();
        let keys: Vec<Vector> = inputs.iter().enumerate().map(|(at, x)| self.turn(self.linear(x, "k", layer), at)).collect();
        let values: Vec<Vector> = inputs.iter().map(|x| self.linear(x, "v", layer)).collect();
        let mut scale = if self.scaled { 1.0 / (width as f64).sqrt() } else { 1.0 };
        if self.scaled_by_layer {
            scale /= (layer + 1) as f64;
        }
        let mut outputs = Vec::new();
        for (here, queries) in queries.iter().enumerate() {
            let mut mixed = vec![0.0; self.heads * width];
            for head in 0..self.heads {
                let shared = head * self.kv_heads / self.heads;
                let query = &queries[head * width..(head + 1) * width];
                let scores: Vector =
                    (0..=here).map(|there| scale * dot(query, &keys[there][shared * width..(shared + 1) * width])).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
                for (there, score) in scores.iter().enumerate() {
                    for entry in 0..width {
                        mixed[head * width + entry] += (score - top).exp() / total * values[there][shared * width + entry];
                    }
                }
            }
            outputs.push(self.linear(&mixed, "o", layer));
        }
        outputs
    }

    /// Turns the pairs of each head by the angles of a position.
    fn turn(&self, mut x: Vector, position: usize) -> Vector {
        if self.gpt2 {
            return x;
        }
        let half = self.d_head / 2;
        for head in x.chunks_mut(self.d_head) {
            for pair in 0..half {
                let angle = position as f64 * self.frequency(pair);
                let (a, b) = (head[pair], head[pair + half]);
                head[pair] = a * angle.cos() - b * angle.sin();
                head[pair + half] = a * angle.sin() + b * angle.cos();
            }
        }
        x
    }

    fn frequency(&self, pair: usize) -> f64 {
        let plain = 1.0 / self.theta.powf(2.0 * pair as f64 / self.d_head as f64);
        match self.stretch {
            Stretch::None => plain,
            Stretch::Linear { factor } => plain / factor,
            Stretch::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * PI / plain;
                if wavelength < original / high {
                    plain
                } else if wavelength > original / low {
                    plain / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
        }
    }

    fn mlp(&self, x: &[f64], layer: usize) -> Vector {
        let up = self.linear(x, "up", layer);
        let hidden: Vector = if self.gpt2 {
            up.into_iter().map(|entry| self.activate(entry)).collect()
        } else {
            self.linear(x, "gate", layer).into_iter().zip(up).map(|(gate, up)| self.activate(gate) * up).collect()
        };
        self.linear(&hidden, "down", layer)
    }

    fn activate(&self, x: f64) -> f64 {
        match self.activation {
            "silu" => x / (1.0 + (-x).exp()),
            "relu" => x.max(0.0),
            "gelu_new" => 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh()),
            "gelu" => x * normal_distribution(x),
            other => panic!("no activation {other}"),
        }
    }
}

/// `Phi(x)`, by the series `1/2 + phi(x) (x + x^3/3 + x^5/15 + ..)`; beyond 8 it is 0 or 1 to within 1e-15.
fn normal_distribution(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let mut term = x;
    let mut sum = x;
    for odd in (3..400).step_by(2) {
        term *= x * x / f64::from(odd);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * PI).sqrt()
}

fn add(x: &mut [f64], more: &[f64]) {
    for (entry, more) in x.iter_mut().zip(more) {
        *entry += more;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
