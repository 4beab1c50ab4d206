//! The memory of a step, kept for the next one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use circuitlab_core::{Dims, Parameters, Result, StepContext};
use circuitlab_kernels::real::Real;
use tch::{Device, Kind, Tensor};

use super::block::Block;
use super::spread::Costs;
use super::tiles::{Tile, tiles};
use crate::transcoders::step::exchange::gone;

/// Pre-activations that are worked on at a time: as many as leave a core's second-level cache room for what they are made from.
const BLOCK_BYTES: usize = 1 << 19;

/// Features of a block, at least and at most: fewer make products slow, more leave threads without work.
const BLOCK_FEATURES: (usize, usize) = (16, 256);

/// What a worker multiplies into and lists rows in.
#[derive(Debug)]
pub(super) struct Scratch {
    /// `[features of a block, rows]`.
    pub(super) products: Tensor,
    pub(super) rows: Vec<u32>,
}

/// Everything that a step needs but the parameters and the batch.
#[derive(Debug)]
pub(in super::super) struct Workspace<R> {
    pub(super) dims: Dims,
    pub(super) rows: usize,
    pub(super) block_features: usize,
    /// Blocks of each source layer.
    pub(super) layers: Vec<Vec<Block<R>>>,
    pub(super) tiles: Vec<Tile>,
    /// The reconstruction of each target layer, then the gradient of the squared error to it, tile after tile: each `[rows, width]`.
    /// Tensors, for their alignment, and so that ranks can add each up as soon as it is there.
    pub(super) errors: Vec<Tensor>,
    /// Sum of that gradient over the rows: `[layer * d_model]`.
    pub(super) error_total: Vec<R>,
    /// The [`grads`](Block::grads) of the blocks of the layer that is worked on.
    grads: Vec<Vec<R>>,
    /// Decoder norms of each source layer.
    pub(super) norms: Vec<Vec<R>>,
    /// Gradients, in the order of the parameters.
    pub(super) gradients: Vec<Tensor>,
    /// What each form costs here.
    pub(super) costs: Costs,
    /// One for each thread.
    pub(super) scratch: Vec<Mutex<Scratch>>,
}

impl<R: Real> Workspace<R> {
    /// Memory for batches of `rows`.
    pub(super) fn new(dims: Dims, rows: usize, params: &Parameters, context: &StepContext<'_>) -> Result<Self> {
        let zeros = |(position, value): (usize, &Tensor)| {
            if context.takes(position) { gone(R::KIND, Device::Cpu) } else { Ok(Tensor::f_zeros(value.size(), (R::KIND, Device::Cpu))?) }
        };
        let gradients = params.values().iter().enumerate().map(zeros).collect::<Result<_>>()?;
        let norms = vec![vec![R::default(); dims.d_features]; dims.layers];
        Self::from_parts(dims, rows, gradients, norms, Costs::measure::<R>())
    }

    /// The same for other numbers of rows: what the micro-batches so far have left stays.
    pub(super) fn with_rows(self, rows: usize) -> Result<Self> {
        let Self { dims, gradients, norms, costs, .. } = self;
        Self::from_parts(dims, rows, gradients, norms, costs)
    }

    fn from_parts(dims: Dims, rows: usize, gradients: Vec<Tensor>, norms: Vec<Vec<R>>, costs: Costs) -> Result<Self> {
        let (least, most) = BLOCK_FEATURES;
        let block_features = (BLOCK_BYTES / (rows * size_of::<R>()).max(1)).clamp(least, most);
        let starts = || (0..dims.d_features).step_by(block_features);
        let blocks = || starts().map(|start| Block::new(start..(start + block_features).min(dims.d_features))).collect();
        let tiles = tiles(dims.layers, dims.d_model, rows, size_of::<R>());
        Ok(Self {
            dims,
            rows,
            block_features,
            layers: (0..dims.layers).map(|_| blocks()).collect(),
            tiles,
            errors: (0..dims.layers)
                .map(|_| Tensor::f_zeros([(rows * dims.d_model) as i64], (R::KIND, Device::Cpu)))
                .collect::<Result<_, _>>()?,
            error_total: vec![R::default(); dims.layers * dims.d_model],
            grads: Vec::new(),
            norms,
            gradients,
            costs,
            scratch: Vec::new(),
        })
    }

    /// Whether it is of these sizes, whatever the rows.
    pub(super) fn fits(&self, dims: Dims, params: &Parameters, context: &StepContext<'_>) -> bool {
        let same = |(position, (gradient, value)): (usize, (&Tensor, &Tensor))| {
            if context.takes(position) { gradient.numel() == 0 } else { gradient.size() == value.size() }
        };
        let values = params.values();
        self.dims == dims && self.gradients.len() == values.len() && self.gradients.iter().zip(values).enumerate().all(same)
    }

    /// Lends memory for the gradients to entries to the blocks of a layer, or takes it back.
    pub(super) fn swap_grads(&mut self, layer: usize) {
        let blocks = &mut self.layers[layer];
        self.grads.resize_with(blocks.len(), Vec::new);
        blocks.iter_mut().zip(&mut self.grads).for_each(|(block, grads)| std::mem::swap(&mut block.grads, grads));
    }

    /// Whether going over all entries of a source layer is the cheaper way to its active ones.
    pub(super) fn prefers_dense(&self, layer: usize) -> bool {
        let active = self.layers[layer].iter().map(|block| block.values.len()).sum();
        self.costs.prefers_dense(active, self.rows * self.dims.d_features)
    }

    /// Makes sure that each thread has memory of its own.
    pub(super) fn prepare(&mut self, threads: usize) -> Result<()> {
        while self.scratch.len() < threads {
            let products = Tensor::f_zeros([self.block_features as i64, self.rows as i64], (R::KIND, Device::Cpu))?;
            self.scratch.push(Mutex::new(Scratch { products, rows: Vec::new() }));
        }
        Ok(())
    }
}

/// The memory of the thread that asks.
pub(super) fn own(scratch: &[Mutex<Scratch>]) -> MutexGuard<'_, Scratch> {
    let thread = rayon::current_thread_index().unwrap_or(0) % scratch.len();
    scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number as a tensor without axes.
pub(super) fn scalar(number: f64) -> Tensor {
    Tensor::from(number).to_kind(Kind::Double)
}
