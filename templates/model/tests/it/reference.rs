//! The forward pass of Starcoder2 once more: scalars, loops and f64, from the formulas alone and by the names in its files.

use std::collections::BTreeMap;
use std::f64::consts::PI;

/// The sizes of a small model, and the numbers of its config.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) hidden: usize,
    pub(crate) vocabulary: usize,
    pub(crate) theta: f64,
    pub(crate) eps: f64,
}

/// The numbers of each tensor, row after row.
pub(crate) type Weights = BTreeMap<String, Vec<f64>>;

/// Logits of one row of tokens: `[position][vocabulary]`.
pub(crate) fn logits(sizes: &Sizes, weights: &Weights, tokens: &[usize]) -> Vec<Vec<f64>> {
    let model = Model { sizes, weights };
    let embedding = &weights["model.embed_tokens.weight"];
    let mut stream: Vec<Vec<f64>> = tokens.iter().map(|token| embedding[token * sizes.width..(token + 1) * sizes.width].to_vec()).collect();
    for layer in 0..sizes.layers {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let normed: Vec<Vec<f64>> = stream.iter().map(|x| model.norm(x, &at("input_layernorm"))).collect();
        let attended = model.attention(&normed, &at("self_attn"));
        for (x, attended) in stream.iter_mut().zip(&attended) {
            add(x, attended);
            let hidden = model.linear(&model.norm(x, &at("post_attention_layernorm")), &at("mlp.c_fc"));
            let hidden: Vec<f64> = hidden.into_iter().map(gelu).collect();
            add(x, &model.linear(&hidden, &at("mlp.c_proj")));
        }
    }
    let unembedding = if weights.contains_key("lm_head.weight") { "lm_head" } else { "model.embed_tokens" };
    stream.iter().map(|x| model.linear(&model.norm(x, "model.norm"), unembedding)).collect()
}

struct Model<'a> {
    sizes: &'a Sizes,
    weights: &'a Weights,
}

impl Model<'_> {
    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let count = x.len() as f64;
        let mean = x.iter().sum::<f64>() / count;
        let variance = x.iter().map(|entry| (entry - mean).powi(2)).sum::<f64>() / count;
        let (gain, bias) = (&self.weights[&format!("{name}.weight")], &self.weights[&format!("{name}.bias")]);
        let normed = x.iter().map(|entry| (entry - mean) / (variance + self.sizes.eps).sqrt());
        normed.zip(gain).zip(bias).map(|((entry, gain), bias)| entry * gain + bias).collect()
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mut out: Vec<f64> = self.weights[&format!("{name}.weight")].chunks(x.len()).map(|row| dot(row, x)).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            add(&mut out, bias);
        }
        out
    }

    fn attention(&self, inputs: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let Sizes { width, heads, kv_heads, .. } = *self.sizes;
        let d_head = width / heads;
        let turned = |part: &str| -> Vec<Vec<f64>> {
            inputs.iter().enumerate().map(|(place, x)| self.turn(self.linear(x, &format!("{name}.{part}")), place)).collect()
        };
        let (queries, keys) = (turned("q_proj"), turned("k_proj"));
        let values: Vec<Vec<f64>> = inputs.iter().map(|x| self.linear(x, &format!("{name}.v_proj"))).collect();
        let mut outputs = Vec::new();
        for here in 0..inputs.len() {
            let mut mixed = vec![0.0; width];
            for head in 0..heads {
                let (own, shared) = (head * d_head, head / (heads / kv_heads) * d_head);
                let score =
                    |there: &Vec<f64>| dot(&queries[here][own..own + d_head], &there[shared..shared + d_head]) / (d_head as f64).sqrt();
                let weights: Vec<f64> = keys[..=here].iter().map(|there| score(there).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for entry in 0..d_head {
                        mixed[own + entry] += weight / total * value[shared + entry];
                    }
                }
            }
            outputs.push(self.linear(&mixed, &format!("{name}.o_proj")));
        }
        outputs
    }

    /// Turns the pairs `(i, i + d_head / 2)` of each head by the angles of a place.
    fn turn(&self, mut x: Vec<f64>, place: usize) -> Vec<f64> {
        let d_head = self.sizes.width / self.sizes.heads;
        let half = d_head / 2;
        for head in x.chunks_mut(d_head) {
            for pair in 0..half {
                let angle = place as f64 / self.sizes.theta.powf(2.0 * pair as f64 / d_head as f64);
                let (a, b) = (head[pair], head[pair + half]);
                head[pair] = a * angle.cos() - b * angle.sin();
                head[pair + half] = a * angle.sin() + b * angle.cos();
            }
        }
        x
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

fn add(x: &mut [f64], more: &[f64]) {
    for (entry, more) in x.iter_mut().zip(more) {
        *entry += more;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
