//! The matrix products that an attribution cannot do without, bare: what it is measured against.

use std::hint::black_box;
use std::time::Instant;

use circuitlab::graph::Nodes;
use circuitlab_core::ModelInfo;
use tch::{Device, Kind, Tensor};

/// Rows of a gradient that are multiplied together.
const MOST_ROWS: i64 = 4096;

/// Shapes of the products for the rows of a cross-layer transcoder's graph.
pub(super) struct Floor<'a> {
    info: &'a ModelInfo,
    /// Targets by layer and position.
    targets: Vec<Vec<i64>>,
    /// Active features, likewise.
    written: Vec<Vec<i64>>,
}

impl<'a> Floor<'a> {
    pub(super) fn new(nodes: &Nodes, info: &'a ModelInfo) -> Self {
        let mut targets = vec![vec![0; nodes.tokens.len()]; nodes.layers + 1];
        let mut written = targets.clone();
        for feature in &nodes.active {
            written[feature.layer as usize][feature.position as usize] += 1;
        }
        for node in nodes.features() {
            let feature = nodes.feature(node);
            targets[feature.layer as usize][feature.position as usize] += 1;
        }
        targets[nodes.layers][nodes.tokens.len() - 1] = nodes.logits.len() as i64;
        Self { info, targets, written }
    }

    /// Multiplies it all once.
    pub(super) fn seconds(&self) -> anyhow::Result<f64> {
        let options = (Kind::Float, Device::Cpu);
        let [d_model, heads, kv_heads, d_head] =
            [self.info.d_model, self.info.heads, self.info.kv_heads, self.info.d_head].map(|size| size as i64);
        let positions = self.targets[0].len();
        let random = |shape: &[i64]| Tensor::f_ones(shape, options).map(|ones| ones * 0.01);
        let (output, value) = (random(&[d_model, heads * d_head])?, random(&[kv_heads * d_head, d_model])?);
        let gradient = random(&[MOST_ROWS, d_model])?;
        let at = |position: usize| self.written.iter().map(|layer| layer[position]).sum::<i64>();
        let most = (0..positions).map(at).max().unwrap_or(0).max(1);
        let vectors = random(&[most, d_model])?;
        let mut seconds = 0.0;
        for (layer, own) in self.targets.iter().enumerate() {
            let rows: i64 = own.iter().zip(1..).map(|(targets, positions)| targets * positions).sum();
            // Features read after their own layer's attention, logits after the last.
            let passes = if layer + 1 == self.targets.len() { layer } else { layer + 1 };
            let began = Instant::now();
            for _ in 0..passes {
                let mut left = rows;
                while left > 0 {
                    let count = left.min(MOST_ROWS);
                    let mixed = gradient.narrow(0, 0, count).f_mm(&output)?;
                    let _ = black_box(mixed.narrow(1, 0, kv_heads * d_head).f_mm(&value)?);
                    left -= count;
                }
                self.patterns(own, options)?;
            }
            for target in 0..layer {
                for position in 0..positions {
                    let written: i64 = (0..=target).map(|source| self.written[source][position]).sum();
                    let reached: i64 = own[position..].iter().sum();
                    let mut left = reached;
                    while left > 0 && written > 0 {
                        let count = left.min(MOST_ROWS);
                        let _ = black_box(gradient.narrow(0, 0, count).f_mm(&vectors.narrow(0, 0, written).tr())?);
                        left -= count;
                    }
                }
            }
            seconds += began.elapsed().as_secs_f64();
        }
        Ok(seconds)
    }

    /// The patterns of one layer times the mixed values of targets.
    fn patterns(&self, own: &[i64], options: (Kind, Device)) -> anyhow::Result<()> {
        let [heads, kv_heads, d_head] = [self.info.heads, self.info.kv_heads, self.info.d_head].map(|size| size as i64);
        for (targets, positions) in own.iter().zip(1..).filter(|(targets, _)| **targets > 0) {
            let pattern = Tensor::f_ones([kv_heads, positions, heads / kv_heads * positions], options)?;
            let mixed = Tensor::f_ones([kv_heads, heads / kv_heads * positions, targets * d_head], options)?;
            let _ = black_box(pattern.f_bmm(&mixed)?);
        }
        Ok(())
    }
}
