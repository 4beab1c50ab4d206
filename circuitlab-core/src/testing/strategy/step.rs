//! A training step of a small dictionary, on one rank and on many.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::crew::{Crew, Rank};
use crate::parallel::MeshAxis;
use crate::random::Stream;
use crate::testing::one_rank::OneRank;
use crate::{Axis, ParallelismStrategy, Result};

const LAYERS: i64 = 2;
const WIDTH: i64 = 3;
/// Neither number divides by the sizes of usual meshes, so that shares differ.
const ROWS: usize = 11;
const FEATURES: usize = 7;
const PENALTY: f64 = 0.3;
/// Far below the gradient's norm, so that it is clipped.
const CLIP_NORM: f64 = 0.1;
const LEARNING_RATE: f64 = 0.5;

/// What a step leaves, of this rank's features.
struct Outcome {
    loss: f64,
    /// Encoder, encoder bias, decoder and decoder bias of each layer.
    gradients: Vec<Tensor>,
    /// The parameters after the step, in the same order.
    updated: Vec<Tensor>,
}

pub(super) fn is_that_of_one_rank(crew: &Crew) {
    let strategy: Arc<dyn ParallelismStrategy> = Arc::new(OneRank);
    let alone = step(&Rank { mesh: strategy.mesh(), strategy }).expect("one rank asks nobody");
    let outcomes = crew.together("a training step", step);
    for (rank, (mesh, outcome)) in crew.meshes().iter().zip(&outcomes).enumerate() {
        let apart = (outcome.loss - alone.loss).abs();
        assert!(apart <= 1e-12 * alone.loss, "a training step, rank {rank}: the loss is {apart:e} away from that of one rank");
        for (what, got, want) in [("gradient", &outcome.gradients, &alone.gradients), ("update", &outcome.updated, &alone.updated)] {
            for (index, (got, want)) in got.iter().zip(want).enumerate() {
                let want = mine(index, want, mesh.feature);
                assert_eq!(got.size(), want.size(), "a training step, rank {rank}: shape of {what} {index}");
                let apart = (got - &want).abs().sum(Kind::Double).double_value(&[]);
                let size = 1.0 + want.abs().sum(Kind::Double).double_value(&[]);
                assert!(apart <= 1e-12 * size, "a training step, rank {rank}: {what} {index} is {apart:e} away from that of one rank");
            }
        }
    }
}

fn noise(shape: &[i64], index: u64) -> Tensor {
    let mut stream = Stream::new(37, "strategy suite", index);
    let numbers: Vec<f64> = (0..shape.iter().product()).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// All parameters, of all features.
fn parameters() -> Vec<Tensor> {
    let features = FEATURES as i64;
    let of_layer = |layer| [vec![features, WIDTH], vec![features], vec![features, LAYERS - layer, WIDTH], vec![WIDTH]];
    (0..LAYERS).flat_map(of_layer).enumerate().map(|(index, shape)| noise(&shape, index as u64)).collect()
}

/// Whether the first axis of a parameter runs over features: not that of a decoder bias.
fn per_feature(index: usize) -> bool {
    index % 4 != 3
}

/// A rank's part of a parameter.
fn mine(index: usize, whole: &Tensor, feature: Axis) -> Tensor {
    if per_feature(index) { part(whole, feature) } else { whole.shallow_clone() }
}

fn part(whole: &Tensor, axis: Axis) -> Tensor {
    let share = axis.share(whole.size()[0] as usize);
    whole.narrow(0, share.start as i64, share.len() as i64)
}

/// One step, as the engine takes it: losses are means over all rows, a decoder bias belongs to every rank of the feature axis.
fn step(rank: &Rank) -> Result<Outcome> {
    let Rank { strategy, mesh } = rank;
    let params: Vec<Tensor> = parameters().iter().enumerate().map(|(index, whole)| mine(index, whole, mesh.feature).copy()).collect();
    let batch = [ROWS as i64, LAYERS, WIDTH];
    let (inputs, targets) = (part(&noise(&batch, 100), mesh.data), part(&noise(&batch, 101), mesh.data));

    let acts: Vec<Tensor> = (0..LAYERS).map(|s| inputs.select(1, s).matmul(&of(&params, s)[0].tr()) + &of(&params, s)[1]).collect();
    let mut made = targets.zeros_like();
    for (s, acts) in (0..LAYERS).zip(&acts) {
        let mut reached = made.narrow(1, s, LAYERS - s);
        reached += acts.matmul(&flat(&of(&params, s)[2])).view([-1, LAYERS - s, WIDTH]);
    }
    strategy.sum(MeshAxis::Feature, &mut made)?;
    let biases: Vec<&Tensor> = (0..LAYERS).map(|s| &of(&params, s)[3]).collect();
    let residual = made + Tensor::stack(&biases, 0) - &targets;

    let mut error = residual.square().sum(Kind::Double) / ROWS as f64;
    let mut penalty = Tensor::from(0.0);
    let slope = &residual * (2.0 / ROWS as f64);
    let mut gradients = Vec::new();
    for (s, acts) in (0..LAYERS).zip(&acts) {
        penalty += acts.square().sum(Kind::Double) * (PENALTY / ROWS as f64);
        let reached = slope.narrow(1, s, LAYERS - s).reshape([-1, (LAYERS - s) * WIDTH]);
        let decoder = &of(&params, s)[2];
        let back = reached.matmul(&flat(decoder).tr()) + acts * (2.0 * PENALTY / ROWS as f64);
        gradients.push(back.tr().matmul(&inputs.select(1, s)));
        gradients.push(back.sum_dim_intlist(0, false, Kind::Double));
        gradients.push(acts.tr().matmul(&reached).view_as(decoder));
        gradients.push(slope.select(1, s).sum_dim_intlist(0, false, Kind::Double));
    }
    strategy.sum(MeshAxis::Data, &mut error)?;
    strategy.sum(MeshAxis::Feature, &mut penalty)?;
    strategy.sum(MeshAxis::Data, &mut penalty)?;
    strategy.reduce_gradients(&mut gradients)?;
    let scale = LEARNING_RATE * CLIP_NORM / norm(strategy.as_ref(), &gradients)?;
    let updated = params.iter().zip(&gradients).map(|(value, gradient)| value - gradient * scale).collect();
    Ok(Outcome { loss: (error + penalty).double_value(&[]), gradients, updated })
}

fn of(params: &[Tensor], layer: i64) -> &[Tensor] {
    &params[4 * layer as usize..4 * layer as usize + 4]
}

/// `[features, targets, width]` to `[features, targets * width]`.
fn flat(decoder: &Tensor) -> Tensor {
    decoder.reshape([decoder.size()[0], decoder.size()[1] * WIDTH])
}

/// The norm of the whole gradient: each rank has its own features' and everybody's decoder biases.
fn norm(strategy: &dyn ParallelismStrategy, gradients: &[Tensor]) -> Result<f64> {
    let (mut owned, mut shared) = (Tensor::from(0.0), Tensor::from(0.0));
    for (index, gradient) in gradients.iter().enumerate() {
        *(if per_feature(index) { &mut owned } else { &mut shared }) += gradient.square().sum(Kind::Double);
    }
    strategy.sum(MeshAxis::Feature, &mut owned)?;
    Ok((owned + shared).sqrt().double_value(&[]))
}
