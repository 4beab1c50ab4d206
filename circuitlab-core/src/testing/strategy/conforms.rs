//! The suite's entry: meshes and barriers; sums and the step are beside it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::crew::Crew;
use super::{step, sums};
use crate::{Axis, Mesh, ParallelismStrategy};

/// How long all ranks may take for one of the suite's parts. None needs more than a second on an idle machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Asserts that a strategy keeps the promises of [`ParallelismStrategy`] with so many ranks.
///
/// - The meshes fit together: sizes agree and multiply to `ranks`, and every place is taken once.
/// - `sum` adds the tensors of an axis's members and no others, into the memory of the tensor it is given, to the same bits on
///   all of them: 32 and 64-bit floats, scalars, empty tensors, views, several in a row.
/// - `reduce_gradients` adds over the data axis.
/// - `gather` joins the shares of an axis's members.
/// - `begin_sum`, `begin_gather` and `begin_scatter` do the same, several at a time, in whatever order they are waited for.
/// - `barrier` lets nobody through before all are there.
/// - Fifty steps of a small dictionary by Adam with clipping, split over both axes, have losses, gradients and weights of one rank, and what all
///   ranks have stays the same on them to the bit.
///
/// `make` is called once for each rank, at the same time and on different threads, with the rank's number.
///
/// # Panics
/// When the strategy breaks a promise, or when ranks have not returned after a minute; the message says which, and in what.
pub fn conforms(ranks: usize, make: impl Fn(usize) -> Box<dyn ParallelismStrategy> + Send + Sync + 'static) {
    conforms_within(LIMIT, ranks, make);
}

fn conforms_within(limit: Duration, ranks: usize, make: impl Fn(usize) -> Box<dyn ParallelismStrategy> + Send + Sync + 'static) {
    let crew = Crew::assemble(ranks, limit, make);
    meshes_fit(&crew.meshes());
    barriers_hold(&crew, ranks);
    sums::are_those_of_the_members(&crew);
    sums::spread_what_is_no_number(&crew);
    sums::reduce_gradients_over_data(&crew);
    sums::gather_joins_the_shares(&crew);
    sums::operations_go_on_together(&crew);
    step::is_that_of_one_rank(&crew);
    crew.dismiss();
}

fn meshes_fit(meshes: &[Mesh]) {
    let first = meshes[0];
    let mut places = BTreeSet::new();
    for (rank, mesh) in meshes.iter().enumerate() {
        let sizes = |mesh: &Mesh| (mesh.data.size, mesh.feature.size, mesh.sharded);
        assert_eq!(sizes(mesh), sizes(&first), "rank {rank}: its mesh (data, feature, sharded) is that of rank 0");
        let inside = |axis: Axis| axis.rank < axis.size;
        assert!(inside(mesh.data) && inside(mesh.feature), "rank {rank}: its place is outside of its mesh, {mesh:?}");
        assert!(places.insert((mesh.data.rank, mesh.feature.rank)), "rank {rank}: its place is taken by an earlier rank, {mesh:?}");
    }
    let (data, feature) = (first.data.size, first.feature.size);
    assert_eq!(data.checked_mul(feature), Some(meshes.len()), "a mesh of {data} by {feature} is for {} ranks", meshes.len());
}

/// In each round another rank comes late, and whoever is through counts how many have come.
fn barriers_hold(crew: &Crew, ranks: usize) {
    let arrived = Arc::new(AtomicUsize::new(0));
    crew.together("barrier", move |rank| {
        let place = rank.mesh.data.rank * rank.mesh.feature.size + rank.mesh.feature.rank;
        for round in 0..=ranks {
            if place == round {
                thread::sleep(Duration::from_millis(30));
            }
            arrived.fetch_add(1, Ordering::SeqCst);
            rank.strategy.barrier()?;
            let came = arrived.load(Ordering::SeqCst);
            assert!(came >= ranks * (round + 1), "barrier {round}: a rank is through when {came} of {} have come", ranks * (round + 1));
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Barrier, Mutex};

    use tch::Tensor;

    use super::*;
    use crate::parallel::MeshAxis;
    use crate::{Error, Result};

    /// Where the ranks of a process meet: a tensor for each, in order.
    #[derive(Debug)]
    struct Table {
        meet: Barrier,
        given: Mutex<Vec<Option<Tensor>>>,
    }

    /// A mesh of threads, with a flaw if wanted.
    #[derive(Debug)]
    struct Threads {
        table: Arc<Table>,
        mesh: Mesh,
        flaw: &'static str,
    }

    impl ParallelismStrategy for Threads {
        fn mesh(&self) -> Mesh {
            self.mesh
        }

        fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> Result<()> {
            let Mesh { data, feature, .. } = self.mesh;
            let me = data.rank * feature.size + feature.rank;
            self.table.given.lock().expect("no panic")[me] = Some(tensor.copy());
            self.table.meet.wait();
            let mut members: Vec<usize> = match axis {
                MeshAxis::Data => (0..data.size).map(|other| other * feature.size + feature.rank).collect(),
                MeshAxis::Feature => (0..feature.size).map(|other| data.rank * feature.size + other).collect(),
            };
            match self.flaw {
                "own order" => members.rotate_left(data.rank + feature.rank),
                "one less" if data.rank == 1 => drop(members.pop()),
                "all" => members = (0..data.size * feature.size).collect(),
                _ => {}
            }
            let mut total = tensor.zeros_like();
            for member in members {
                total += self.table.given.lock().expect("no panic")[member].as_ref().expect("given");
            }
            self.table.meet.wait();
            if self.flaw == "elsewhere" {
                *tensor = total;
            } else {
                tensor.copy_(&total);
            }
            Ok(())
        }

        fn barrier(&self) -> Result<()> {
            match self.flaw {
                "no barrier" => {}
                "hangs" if self.mesh.data.rank == 1 => thread::sleep(Duration::from_mins(10)),
                "fails" => return Err(Error::Invalid("it rains".to_owned())),
                _ => drop(self.table.meet.wait()),
            }
            Ok(())
        }
    }

    fn run(data: usize, feature: usize, flaw: &'static str) {
        let ranks = data * feature;
        let given = (0..ranks).map(|_| None).collect();
        let table = Arc::new(Table { meet: Barrier::new(ranks), given: Mutex::new(given) });
        conforms_within(Duration::from_secs(if flaw == "hangs" { 2 } else { 30 }), ranks, move |rank| {
            let rank = if flaw == "same place" { 0 } else { rank };
            let mesh = Mesh {
                data: Axis { rank: rank / feature, size: data },
                feature: Axis { rank: rank % feature, size: feature },
                sharded: false,
            };
            Box::new(Threads { table: Arc::clone(&table), mesh, flaw })
        });
    }

    #[test]
    fn meshes_of_threads_conform() {
        for (data, feature) in [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)] {
            run(data, feature, "none");
        }
    }

    #[test]
    fn flaws_are_found() {
        for (flaw, message) in [
            ("same place", "its place is taken"),
            ("no barrier", "a rank is through when"),
            ("hangs", "after 2s the ranks"),
            ("fails", "fails: it rains"),
            ("own order", "the same bits"),
            ("one less", "the members' tensors"),
            ("all", "the members' tensors"),
            ("elsewhere", "in place"),
        ] {
            let panic = catch_unwind(AssertUnwindSafe(|| run(3, 2, flaw))).expect_err(flaw);
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(text.contains(message), "{flaw}: {text}");
        }
    }
}
