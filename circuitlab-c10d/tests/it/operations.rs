//! Every operation against what plain sums say, over 1 to 4 ranks.

use circuitlab_c10d::{ProcessGroup, Reduction};
use circuitlab_core::Axis;
use proptest::test_runner::{Config, TestRunner};
use tch::{Device, Kind, Tensor};

use crate::ranks::{LIMITS, everyone, together};

const SHAPES: [&[i64]; 7] = [&[], &[0], &[1], &[7], &[3, 5], &[4, 0, 2], &[100_003]];

/// Whole numbers, which add up exactly in every order and type, another for each rank and place.
fn given(rank: usize, shape: &[i64], kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    ((Tensor::arange(count, (Kind::Int64, Device::Cpu)) * (rank as i64 + 3)).remainder(17) - 8).view(shape).to_kind(kind)
}

fn all_of(size: usize, shape: &[i64], kind: Kind) -> Tensor {
    Tensor::stack(&(0..size).map(|rank| given(rank, shape, kind)).collect::<Vec<_>>(), 0).to_kind(Kind::Double)
}

fn reduces(group: &ProcessGroup) {
    let Axis { rank, size } = group.axis();
    for kind in [Kind::Float, Kind::Double, Kind::Int64, Kind::BFloat16, Kind::Half, Kind::Int] {
        for shape in SHAPES {
            let all = all_of(size, shape, kind);
            for (how, want) in [
                (Reduction::Sum, all.sum_dim_intlist(0, false, Kind::Double)),
                (Reduction::Max, all.amax(0, false)),
                (Reduction::Min, all.amin(0, false)),
            ] {
                let mut tensor = given(rank, shape, kind);
                group.all_reduce(&mut tensor, how).expect("all answer");
                assert!(tensor.kind() == kind && tensor.to_kind(Kind::Double) == want, "{how:?} of {kind:?} {shape:?}");
            }
            for root in 0..size {
                let mut tensor = given(rank, shape, kind);
                group.broadcast(&mut tensor, root).expect("all answer");
                assert!(tensor == given(root, shape, kind), "broadcast of {kind:?} {shape:?} from {root}");
            }
        }
    }
}

fn reduces_views_in_place(group: &ProcessGroup) {
    let Axis { rank, size } = group.axis();
    let parts: [fn(&Tensor) -> Tensor; 3] = [|whole| whole.tr(), |whole| whole.narrow(1, 1, 3), |whole| whole.slice(0, 1, 4, 2)];
    for part in parts {
        let whole = given(rank, &[4, 6], Kind::Float);
        let want = whole.copy();
        part(&want).copy_(&part(&all_of(size, &[4, 6], Kind::Float).sum_dim_intlist(0, false, Kind::Double)));
        group.all_reduce(&mut part(&whole), Reduction::Sum).expect("all answer");
        assert!(whole == want, "the part is reduced and nothing else");
        let mut part_of = part(&whole);
        group.broadcast(&mut part_of, size - 1).expect("all answer");
        assert!(whole == want, "all have the same by now");
    }
}

/// Numbers whose sums depend on the order: the order must be the same for all.
fn sums_have_the_same_bits(group: &ProcessGroup) {
    let Axis { rank, size } = group.axis();
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let mut sum = ((Tensor::arange(10_007, (Kind::Double, Device::Cpu)) + rank as f64 * 0.37).sin() * 1e3).to_kind(kind);
        group.all_reduce(&mut sum, Reduction::Sum).expect("all answer");
        let everybodys = group.all_gather(&sum.view([1, -1]), &vec![1; size]).expect("all answer");
        for other in 0..size as i64 {
            assert!(everybodys.get(other) == sum, "{kind:?}: rank {other} has other bits");
        }
    }
}

fn gathers_and_scatters(group: &ProcessGroup, rows: &[usize], width: i64, kind: Kind) {
    let Axis { rank, size } = group.axis();
    let total: usize = rows.iter().sum();
    let part = |whole: &Tensor, rank: usize| whole.narrow(0, rows[..rank].iter().sum::<usize>() as i64, rows[rank] as i64);
    let shape = [total as i64, width];
    let whole = given(0, &shape, kind);
    let got = group.all_gather(&part(&whole, rank), rows).expect("all answer");
    assert!(got == whole, "all_gather of {rows:?} x {width} {kind:?}");
    let got = group.reduce_scatter(&given(rank, &shape, kind), rows).expect("all answer");
    let want = part(&all_of(size, &shape, kind).sum_dim_intlist(0, false, Kind::Double), rank);
    assert!(got.kind() == kind && got.to_kind(Kind::Double) == want, "reduce_scatter of {rows:?} x {width} {kind:?}");
}

fn shares(group: &ProcessGroup) {
    let Axis { size, .. } = group.axis();
    for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
        for total in [0, 1, size, size + 1, 4 * size - 1, 1009] {
            let rows: Vec<usize> = (0..size).map(|rank| Axis { rank, size }.share(total).len()).collect();
            gathers_and_scatters(group, &rows, 3, kind);
        }
    }
    // The same cases on every rank: the runner is seeded.
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 24, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let cases = (proptest::collection::vec(0_usize..9, size), 0_i64..4);
    runner
        .run(&cases, |(rows, width)| {
            gathers_and_scatters(group, &rows, width, Kind::Double);
            Ok(())
        })
        .expect("every split");
}

fn many_are_under_way(group: &ProcessGroup) {
    let Axis { rank, size } = group.axis();
    let shape = [50_021];
    let works: Vec<_> =
        (0..5).map(|index| group.start_all_reduce(given(rank + index, &shape, Kind::Float), Reduction::Sum).expect("begins")).collect();
    let gathered = group.start_all_gather(&given(rank, &[2, 3], Kind::Float), &vec![2; size]).expect("begins");
    // Dropped ones end all the same.
    drop(group.start_broadcast(given(rank, &shape, Kind::Float), 0).expect("begins"));
    for (index, work) in works.into_iter().enumerate().rev() {
        let want = Tensor::stack(&(0..size).map(|rank| given(rank + index, &shape, Kind::Float)).collect::<Vec<_>>(), 0);
        assert!(work.wait().expect("all answer") == want.sum_dim_intlist(0, false, Kind::Float), "sum {index}");
    }
    assert_eq!(gathered.wait().expect("all answer").size(), [2 * size as i64, 3]);
}

fn mistakes_are_refused_and_harm_nothing(group: &ProcessGroup) {
    let Axis { size, .. } = group.axis();
    let mut boolean = Tensor::from_slice(&[true]);
    let error = group.all_reduce(&mut boolean, Reduction::Sum).expect_err("no numbers").to_string();
    assert!(error.contains("all_reduce: cannot send tensors of Bool; expected one of [Float, "), "{error}");
    let mut one = Tensor::from_slice(&[1.0_f32]);
    let error = group.broadcast(&mut one, size).expect_err("no such rank").to_string();
    assert!(error.contains(&format!("broadcast: there is no rank {size} in the group")), "{error}");
    let error = group.all_gather(&one, &vec![2; size]).expect_err("too short").to_string();
    assert!(error.contains("all_gather: a tensor of shape [1] does not go with the rows [2"), "{error}");
    let error = group.reduce_scatter(&Tensor::from(1.0), &vec![0; size]).expect_err("no axis").to_string();
    assert!(error.contains("reduce_scatter: a tensor of shape [] does not go"), "{error}");
    group.barrier().expect("all answer");
}

fn all_operations(group: &ProcessGroup) {
    reduces(group);
    reduces_views_in_place(group);
    sums_have_the_same_bits(group);
    shares(group);
    many_are_under_way(group);
    mistakes_are_refused_and_harm_nothing(group);
}

#[test]
fn of_one_rank() {
    together("operations::of_one_rank", 1, |world| all_operations(&everyone(world)));
}

#[test]
fn of_two_ranks() {
    together("operations::of_two_ranks", 2, |world| all_operations(&everyone(world)));
}

#[test]
fn of_three_ranks() {
    together("operations::of_three_ranks", 3, |world| all_operations(&everyone(world)));
}

#[test]
fn of_four_ranks() {
    together("operations::of_four_ranks", 4, |world| all_operations(&everyone(world)));
}

#[test]
fn of_two_groups_at_once() {
    together("operations::of_two_groups_at_once", 4, |world| {
        let rank = world.axis().rank;
        let (row, column) = (rank / 2, rank % 2);
        let rows = world.group(&format!("row {row}"), &[2 * row, 2 * row + 1], LIMITS).expect("both come");
        let columns = world.group(&format!("column {column}"), &[column, column + 2], LIMITS).expect("both come");
        assert_eq!((rows.axis(), columns.axis()), (Axis { rank: column, size: 2 }, Axis { rank: row, size: 2 }));
        let along = rows.start_all_reduce(given(rank, &[9001], Kind::Float), Reduction::Sum).expect("begins");
        let across = columns.start_all_reduce(given(rank, &[9001], Kind::Float), Reduction::Sum).expect("begins");
        let sum = |one, other| given(one, &[9001], Kind::Float) + given(other, &[9001], Kind::Float);
        assert!(across.wait().expect("both answer") == sum(column, column + 2));
        assert!(along.wait().expect("both answer") == sum(2 * row, 2 * row + 1));
        all_operations(&rows);
        all_operations(&columns);
        for (name, members) in [("row 0", vec![rank]), ("x", vec![rank, 9]), ("x", vec![]), ("a\nb", vec![rank])] {
            let refused = world.group(name, &members, LIMITS);
            // Ranks 2 and 3 have made no group of the first name.
            assert_eq!(refused.is_err(), name != "row 0" || row == 0, "{name}");
        }
        everyone(world).barrier().expect("all answer");
    });
}
