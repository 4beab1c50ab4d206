//! Sums over an axis, and over gradients.

use tch::{Kind, Tensor};

use super::crew::{Crew, Rank};
use crate::Mesh;
use crate::parallel::MeshAxis;
use crate::random::Stream;

/// What is summed: a part of a tensor of its own.
struct Case {
    name: &'static str,
    shape: &'static [i64],
    part: fn(&Tensor) -> Tensor,
}

const CASES: [Case; 8] = [
    Case { name: "a scalar", shape: &[], part: Tensor::shallow_clone },
    Case { name: "an empty tensor", shape: &[3, 0], part: Tensor::shallow_clone },
    Case { name: "a vector", shape: &[7], part: Tensor::shallow_clone },
    Case { name: "a cube", shape: &[2, 3, 5], part: Tensor::shallow_clone },
    Case { name: "a turned matrix", shape: &[4, 6], part: Tensor::tr },
    Case { name: "a stretch of a vector", shape: &[9], part: |whole| whole.narrow(0, 2, 4) },
    Case { name: "every other column of a matrix", shape: &[4, 6], part: |whole| whole.slice(1, 1, 6, 2) },
    Case { name: "a long vector", shape: &[100_003], part: Tensor::shallow_clone },
];

/// What the ranks put in. Whole numbers add up exactly in any order; others show the order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Numbers {
    Whole,
    Broken,
}

/// A rank's number by its place in the mesh.
fn place(mesh: Mesh) -> usize {
    mesh.data.rank * mesh.feature.size + mesh.feature.rank
}

/// What the rank at a place puts in.
fn given(place: usize, index: usize, shape: &[i64], kind: Kind, numbers: Numbers) -> Tensor {
    let mut stream = Stream::new(31, "strategy suite", (place * CASES.len() + index) as u64);
    let draw = |_| match numbers {
        Numbers::Whole => (stream.uniform() * 2001.0).floor() - 1000.0,
        Numbers::Broken => (stream.uniform() - 0.5) * 10_f64.powf(6.0 * stream.uniform()),
    };
    let values: Vec<f64> = (0..shape.iter().product()).map(draw).collect();
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

/// The places of the ranks that `mesh`'s rank adds up with, in the order of the axis.
fn members(mesh: Mesh, axis: MeshAxis) -> Vec<usize> {
    match axis {
        MeshAxis::Data => (0..mesh.data.size).map(|other| other * mesh.feature.size + mesh.feature.rank).collect(),
        MeshAxis::Feature => (0..mesh.feature.size).map(|other| mesh.data.rank * mesh.feature.size + other).collect(),
    }
}

pub(super) fn are_those_of_the_members(crew: &Crew) {
    for axis in [MeshAxis::Data, MeshAxis::Feature] {
        for kind in [Kind::Float, Kind::Double] {
            for numbers in [Numbers::Whole, Numbers::Broken] {
                let what = format!("sum over {axis:?} of {kind:?}");
                let sums = crew.together(&what, move |rank| {
                    let one = |(index, case): (usize, &Case)| {
                        let whole = given(place(rank.mesh), index, case.shape, kind, numbers);
                        let mut part = (case.part)(&whole);
                        rank.strategy.sum(axis, &mut part).map(|()| (whole, part))
                    };
                    CASES.iter().enumerate().map(one).collect()
                });
                check(&what, &crew.meshes(), axis, kind, numbers, &sums);
            }
        }
    }
}

/// Each rank's tensors after the sums: the whole one, and the part of it that was summed.
fn check(what: &str, meshes: &[Mesh], axis: MeshAxis, kind: Kind, numbers: Numbers, sums: &[Vec<(Tensor, Tensor)>]) {
    for (rank, (mesh, sums_here)) in meshes.iter().zip(sums).enumerate() {
        for (index, (case, (whole, part))) in CASES.iter().zip(sums_here).enumerate() {
            let what = format!("{what}, {}, rank {rank}", case.name);
            let members = members(*mesh, axis);
            let terms: Vec<Tensor> =
                members.iter().map(|member| (case.part)(&given(*member, index, case.shape, kind, numbers)).to_kind(Kind::Double)).collect();
            let want = Tensor::stack(&terms, 0).sum_dim_intlist(0, false, Kind::Double);
            assert_eq!((part.size(), part.kind()), (want.size(), kind), "{what}: shape and type stay");
            if numbers == Numbers::Whole {
                assert!(part.to_kind(Kind::Double) == want, "{what}: the sum is not that of the members' tensors");
                let around = given(place(*mesh), index, case.shape, kind, numbers);
                (case.part)(&around).copy_(&want);
                assert!(*whole == around, "{what}: the sum is not in place, or it writes beside the tensor that it was given");
                continue;
            }
            // A hundred roundings of the largest sum that the terms could make.
            let epsilon = if kind == Kind::Float { f64::from(f32::EPSILON) } else { f64::EPSILON };
            let most = Tensor::stack(&terms, 0).abs().sum(Kind::Double).double_value(&[]);
            let error = (part.to_kind(Kind::Double) - &want).abs().sum(Kind::Double).double_value(&[]);
            assert!(error <= 100.0 * epsilon * most, "{what}: the sum is {error:e} away from that of the members' tensors");
            let first = meshes.iter().position(|mesh| place(*mesh) == members[0]).map(|first| &sums[first][index].1);
            assert_eq!(first.map(bits), Some(bits(part)), "{what}: not the same bits as on the first member");
        }
    }
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let flat = tensor.to_kind(Kind::Double).contiguous().view(-1);
    Vec::<f64>::try_from(flat).expect("a list of f64").into_iter().map(f64::to_bits).collect()
}

/// A gradient that overflowed on one rank must stop the run on all of them.
pub(super) fn spread_what_is_no_number(crew: &Crew) {
    for axis in [MeshAxis::Data, MeshAxis::Feature] {
        let what = format!("sum over {axis:?} of what is no number");
        let sums = crew.together(&what, move |rank| {
            let first = place(rank.mesh) == 0;
            let mut tensor = Tensor::from_slice(if first { &[f64::NAN, f64::INFINITY] } else { &[1.0, 1.0] });
            rank.strategy.sum(axis, &mut tensor).map(|()| tensor)
        });
        for (rank, (mesh, sum)) in crew.meshes().iter().zip(&sums).enumerate() {
            let (first, second) = (sum.double_value(&[0]), sum.double_value(&[1]));
            let members = members(*mesh, axis);
            if members.contains(&0) {
                assert!(first.is_nan() && second == f64::INFINITY, "{what}, rank {rank}: NaN and infinity become {first} and {second}");
            } else {
                let apart = (first - members.len() as f64).abs() + (second - members.len() as f64).abs();
                assert!(apart < 1e-9, "{what}, rank {rank}: it reaches ranks that are no members");
            }
        }
    }
}

/// Shares of uneven sizes, and some that are empty.
pub(super) fn gather_joins_the_shares(crew: &Crew) {
    for axis in [MeshAxis::Data, MeshAxis::Feature] {
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64] {
            for shape in [[7, 3], [1, 2], [64, 0]] {
                let what = format!("gather over {axis:?} of {kind:?} {shape:?}");
                let rows = shape[0];
                let whole = move |mesh: Mesh| given(members(mesh, axis)[0], rows as usize, &shape, kind, Numbers::Whole);
                let gathered = crew.together(&what, move |rank| {
                    let share = rank.mesh.axis(axis).share(rows as usize);
                    let own = whole(rank.mesh).narrow(0, share.start as i64, share.len() as i64);
                    rank.strategy.gather(axis, &own, rows as usize)
                });
                for (rank, (mesh, got)) in crew.meshes().iter().zip(&gathered).enumerate() {
                    assert_eq!(got.kind(), kind, "{what}, rank {rank}: the type stays");
                    assert!(*got == whole(*mesh), "{what}, rank {rank}: it is not the members' shares");
                }
            }
        }
    }
}

/// Three operations begun one after the other, and waited for from the last to the first.
pub(super) fn operations_go_on_together(crew: &Crew) {
    const SHAPE: [i64; 2] = [7, 3];
    let number = |place: usize| given(place, 0, &SHAPE, Kind::Double, Numbers::Whole);
    for axis in [MeshAxis::Data, MeshAxis::Feature] {
        let what = format!("operations begun together over {axis:?}");
        let ends = crew.together(&what, move |rank| {
            let share = rank.mesh.axis(axis).share(SHAPE[0] as usize);
            let here = |whole: &Tensor| whole.narrow(0, share.start as i64, share.len() as i64);
            let (summed, whole) = (number(place(rank.mesh)).tr(), number(place(rank.mesh)));
            let sum = rank.strategy.begin_sum(axis, summed.shallow_clone())?;
            let gather = rank.strategy.begin_gather(axis, &here(&number(members(rank.mesh, axis)[0])), SHAPE[0] as usize)?;
            let scatter = rank.strategy.begin_scatter(axis, &whole)?;
            let (scattered, gathered) = (scatter.wait()?, gather.wait()?);
            let given_back = sum.wait()?;
            Ok((summed, given_back, gathered, scattered))
        });
        for (rank, (mesh, (summed, given_back, gathered, scattered))) in crew.meshes().iter().zip(&ends).enumerate() {
            let members = members(*mesh, axis);
            let terms: Vec<Tensor> = members.iter().map(|place| number(*place)).collect();
            let want = Tensor::stack(&terms, 0).sum_dim_intlist(0, false, Kind::Double);
            let share = mesh.axis(axis).share(SHAPE[0] as usize);
            assert!(*summed == want.tr() && *given_back == *summed, "{what}, rank {rank}: the sum is not in place");
            assert!(*gathered == terms[0], "{what}, rank {rank}: it is not the members' shares");
            let own = want.narrow(0, share.start as i64, share.len() as i64);
            assert!(*scattered == own, "{what}, rank {rank}: it is not its share of the sum");
        }
    }
}

pub(super) fn reduce_gradients_over_data(crew: &Crew) {
    let gradients = |place: usize| -> Vec<Tensor> {
        CASES.iter().enumerate().map(|(index, case)| (case.part)(&given(place, index, case.shape, Kind::Double, Numbers::Whole))).collect()
    };
    let reduced = crew.together("reduce_gradients", move |rank: &Rank| {
        let mut mine = gradients(place(rank.mesh));
        rank.strategy.reduce_gradients(&mut mine).map(|()| mine)
    });
    for (rank, (mesh, reduced)) in crew.meshes().iter().zip(&reduced).enumerate() {
        let terms: Vec<Vec<Tensor>> = members(*mesh, MeshAxis::Data).into_iter().map(gradients).collect();
        for (index, (case, got)) in CASES.iter().zip(reduced).enumerate() {
            let each: Vec<&Tensor> = terms.iter().map(|term| &term[index]).collect();
            let want = Tensor::stack(&each, 0).sum_dim_intlist(0, false, Kind::Double);
            assert!(*got == want, "reduce_gradients, {}, rank {rank}: it is not the sum over the data axis", case.name);
        }
    }
}
