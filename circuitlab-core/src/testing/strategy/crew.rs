//! Ranks as threads, with a limit on how long they may take.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::catch_panic;
use crate::{Mesh, ParallelismStrategy, Result};

/// A rank's strategy and its mesh.
#[derive(Clone)]
pub(super) struct Rank {
    pub(super) strategy: Arc<dyn ParallelismStrategy>,
    pub(super) mesh: Mesh,
}

/// All ranks of a run.
pub(super) struct Crew {
    ranks: Vec<Rank>,
    limit: Duration,
}

impl Crew {
    /// Makes every rank's strategy, all at once: a strategy may wait for the others before it is there.
    pub(super) fn assemble<M>(ranks: usize, limit: Duration, make: M) -> Self
    where
        M: Fn(usize) -> Box<dyn ParallelismStrategy> + Send + Sync + 'static,
    {
        assert!(ranks > 0, "a run has at least one rank");
        let make = Arc::new(make);
        let works = (0..ranks).map(|rank| {
            let make = Arc::clone(&make);
            move || {
                let strategy: Arc<dyn ParallelismStrategy> = Arc::from(make(rank));
                Ok(Rank { mesh: strategy.mesh(), strategy })
            }
        });
        Self { ranks: at_once("making the strategy", limit, works), limit }
    }

    pub(super) fn meshes(&self) -> Vec<Mesh> {
        self.ranks.iter().map(|rank| rank.mesh).collect()
    }

    /// Runs `work` on every rank at once, and gives what each returns, in their order.
    pub(super) fn together<T, W>(&self, what: &str, work: W) -> Vec<T>
    where
        T: Send + 'static,
        W: Fn(&Rank) -> Result<T> + Send + Sync + 'static,
    {
        let work = Arc::new(work);
        let works = self.ranks.iter().map(|rank| {
            let (rank, work) = (rank.clone(), Arc::clone(&work));
            move || work(&rank)
        });
        at_once(what, self.limit, works)
    }

    /// Lets every rank go at once: the end of one may wait for the others too.
    pub(super) fn dismiss(self) {
        let works = self.ranks.into_iter().map(|rank| {
            move || {
                drop(rank);
                Ok(())
            }
        });
        at_once("dropping the strategy", self.limit, works);
    }
}

/// Runs each in a thread of its own. The threads are not joined: one that hangs is left behind, and the test fails.
fn at_once<T, W>(what: &str, limit: Duration, works: impl Iterator<Item = W>) -> Vec<T>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T> + Send + 'static,
{
    let (sender, done) = channel();
    let mut results: Vec<Option<T>> = Vec::new();
    for (rank, work) in works.enumerate() {
        let sender = sender.clone();
        results.push(None);
        thread::spawn(move || {
            let outcome = catch_panic("the rank", work);
            // Nobody listens any more once another rank has failed.
            let _ = sender.send((rank, outcome));
        });
    }
    drop(sender);
    let deadline = Instant::now() + limit;
    while results.iter().any(Option::is_none) {
        match done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((rank, Ok(result))) => results[rank] = Some(result),
            Ok((rank, Err(error))) => panic!("{what}: rank {rank} of {} fails: {error}", results.len()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let hang: Vec<usize> = (0..results.len()).filter(|rank| results[*rank].is_none()).collect();
                panic!("{what}: after {limit:?} the ranks {hang:?} of {} have not returned", results.len());
            }
        }
    }
    results.into_iter().flatten().collect()
}
