//! Training of a small dictionary, on one rank and on many.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::crew::{Crew, Rank};
use crate::parallel::MeshAxis;
use crate::random::Stream;
use crate::testing::one_rank::OneRank;
use crate::{Axis, Mesh, ParallelismStrategy, Result};

const LAYERS: i64 = 2;
const WIDTH: i64 = 3;
/// Neither number divides by the sizes of usual meshes, so that shares differ.
const ROWS: usize = 11;
const FEATURES: usize = 7;
const PENALTY: f64 = 0.3;
/// Far below the gradient's norm, so that it is clipped.
const CLIP_NORM: f64 = 0.1;
const STEPS: u64 = 50;
const LEARNING_RATE: f64 = 0.02;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// How far figures of many ranks may be from those of one: what the order of sums makes of 64 bits in one step, and in all of them, in which
/// Adam divides gradients by their own size.
const APART: [f64; 2] = [1e-12, 1e-8];

/// What training leaves, of this rank's features.
struct Outcome {
    /// Of each step.
    losses: Vec<f64>,
    /// Of the first step: encoder, encoder bias, decoder and decoder bias of each layer.
    gradients: Vec<Tensor>,
    /// The parameters after the last step, in the same order.
    trained: Vec<Tensor>,
}

pub(super) fn is_that_of_one_rank(crew: &Crew) {
    let strategy: Arc<dyn ParallelismStrategy> = Arc::new(OneRank);
    let alone = train(&Rank { mesh: strategy.mesh(), strategy }).expect("one rank asks nobody");
    let outcomes = crew.together("training", train);
    for (rank, (mesh, outcome)) in crew.meshes().iter().zip(&outcomes).enumerate() {
        for (step, (loss, want)) in outcome.losses.iter().zip(&alone.losses).enumerate() {
            let apart = (loss - want).abs();
            let may = APART[usize::from(step > 0)];
            assert!(apart <= may * want, "training, rank {rank}: the loss of step {step} is {apart:e} away from that of one rank");
        }
        check(rank, *mesh, ("gradient", &outcome.gradients), &alone.gradients, APART[0]);
        check(rank, *mesh, ("parameter after the last step", &outcome.trained), &alone.trained, APART[1]);
        for (index, (got, first)) in outcome.trained.iter().zip(&outcomes[0].trained).enumerate().filter(|(index, _)| !per_feature(*index))
        {
            assert!(got == first, "training, rank {rank}: parameter {index}, which all ranks have, is not to the bit that of rank 0");
        }
    }
}

fn check(rank: usize, mesh: Mesh, (what, got): (&str, &[Tensor]), want: &[Tensor], may: f64) {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let want = mine(index, want, mesh.feature);
        assert_eq!(got.size(), want.size(), "training, rank {rank}: shape of {what} {index}");
        let apart = (got - &want).abs().sum(Kind::Double).double_value(&[]);
        let size = 1.0 + want.abs().sum(Kind::Double).double_value(&[]);
        assert!(apart <= may * size, "training, rank {rank}: {what} {index} is {apart:e} away from that of one rank");
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

/// All steps, clipped and by Adam, as the engine takes them.
fn train(rank: &Rank) -> Result<Outcome> {
    let mut params: Vec<Tensor> =
        parameters().iter().enumerate().map(|(index, whole)| mine(index, whole, rank.mesh.feature).copy()).collect();
    let mut moments: Vec<[Tensor; 2]> = params.iter().map(|param| [param.zeros_like(), param.zeros_like()]).collect();
    let (mut losses, mut first) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        let (loss, gradients) = gradients(rank, &params, step)?;
        let scale = (CLIP_NORM / norm(rank.strategy.as_ref(), &gradients)?).min(1.0);
        let unbiased = BETAS.map(|beta| 1.0 - beta.powi(step as i32 + 1));
        for ((param, [mean, square]), gradient) in params.iter_mut().zip(&mut moments).zip(&gradients) {
            let gradient = gradient * scale;
            *mean = &*mean * BETAS[0] + &gradient * (1.0 - BETAS[0]);
            *square = &*square * BETAS[1] + gradient.square() * (1.0 - BETAS[1]);
            *param -= LEARNING_RATE / unbiased[0] * &*mean / ((&*square / unbiased[1]).sqrt() + EPSILON);
        }
        losses.push(loss);
        if step == 0 {
            first = gradients;
        }
    }
    Ok(Outcome { losses, gradients: first, trained: params })
}

/// Loss and gradients of a step: losses are means over all rows, a decoder bias belongs to every rank of the feature axis.
fn gradients(rank: &Rank, params: &[Tensor], step: u64) -> Result<(f64, Vec<Tensor>)> {
    let Rank { strategy, mesh } = rank;
    let batch = [ROWS as i64, LAYERS, WIDTH];
    let (inputs, targets) = (part(&noise(&batch, 100 + 2 * step), mesh.data), part(&noise(&batch, 101 + 2 * step), mesh.data));

    let acts: Vec<Tensor> = (0..LAYERS).map(|s| inputs.select(1, s).matmul(&of(params, s)[0].tr()) + &of(params, s)[1]).collect();
    let mut made = targets.zeros_like();
    for (s, acts) in (0..LAYERS).zip(&acts) {
        let mut reached = made.narrow(1, s, LAYERS - s);
        reached += acts.matmul(&flat(&of(params, s)[2])).view([-1, LAYERS - s, WIDTH]);
    }
    strategy.sum(MeshAxis::Feature, &mut made)?;
    let biases: Vec<&Tensor> = (0..LAYERS).map(|s| &of(params, s)[3]).collect();
    let residual = made + Tensor::stack(&biases, 0) - &targets;

    let mut error = residual.square().sum(Kind::Double) / ROWS as f64;
    let mut penalty = Tensor::from(0.0);
    let slope = &residual * (2.0 / ROWS as f64);
    let mut gradients = Vec::new();
    for (s, acts) in (0..LAYERS).zip(&acts) {
        penalty += acts.square().sum(Kind::Double) * (PENALTY / ROWS as f64);
        let reached = slope.narrow(1, s, LAYERS - s).reshape([-1, (LAYERS - s) * WIDTH]);
        let decoder = &of(params, s)[2];
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
    Ok(((error + penalty).double_value(&[]), gradients))
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
