//! What this rank sends to others, step by step.

use std::sync::Arc;

use circuitlab_core::ParallelismStrategy;

use crate::Result;
use crate::sink::names;

/// Bytes sent in the steps since the last record. What goes on between steps, for records and checkpoints, is left out.
#[derive(Debug)]
pub(super) struct Sent {
    strategy: Arc<dyn ParallelismStrategy>,
    /// All that had been sent when the step began.
    before: u64,
    bytes: u64,
    steps: u64,
}

impl Sent {
    pub(super) fn new(strategy: &Arc<dyn ParallelismStrategy>) -> Self {
        Self { strategy: Arc::clone(strategy), before: 0, bytes: 0, steps: 0 }
    }

    /// A step begins.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.before = self.all()?;
        Ok(())
    }

    /// It is over.
    pub(super) fn end(&mut self) -> Result<()> {
        self.bytes += self.all()?.saturating_sub(self.before);
        self.steps += 1;
        Ok(())
    }

    /// The figure since the last record; nothing where nothing is sent, or the strategy does not count.
    pub(super) fn lap(&mut self) -> Option<(&'static str, f64)> {
        let figure = (self.bytes > 0).then(|| (names::SENT_BYTES_PER_STEP, self.bytes as f64 / self.steps.max(1) as f64));
        (self.bytes, self.steps) = (0, 0);
        figure
    }

    fn all(&self) -> Result<u64> {
        Ok(self.strategy.traffic()?.iter().map(|traffic| traffic.bytes).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use circuitlab_core::parallel::MeshAxis;
    use circuitlab_core::traffic::{Collective, Traffic};
    use circuitlab_core::{Mesh, Result};
    use tch::Tensor;

    use super::*;

    /// Sends ten bytes whenever it adds up.
    #[derive(Debug, Default)]
    struct Counting(AtomicU64);

    impl ParallelismStrategy for Counting {
        fn mesh(&self) -> Mesh {
            Mesh::SINGLE
        }

        fn sum(&self, _: MeshAxis, _: &mut Tensor) -> Result<()> {
            self.0.fetch_add(10, Ordering::Relaxed);
            Ok(())
        }

        fn barrier(&self) -> Result<()> {
            Ok(())
        }

        fn traffic(&self) -> Result<Vec<Traffic>> {
            let bytes = self.0.load(Ordering::Relaxed);
            Ok(vec![Traffic { axis: MeshAxis::Data, collective: Collective::Sum, calls: bytes / 10, bytes }])
        }
    }

    #[test]
    fn what_is_sent_between_steps_is_not_counted() {
        let strategy: Arc<dyn ParallelismStrategy> = Arc::new(Counting::default());
        let send = || strategy.sum(MeshAxis::Data, &mut Tensor::from(0.0)).expect("sums");
        let mut sent = Sent::new(&strategy);
        for times in [1, 2] {
            send();
            sent.begin().expect("counts");
            (0..times).for_each(|_| send());
            sent.end().expect("counts");
        }
        assert_eq!(sent.lap(), Some((names::SENT_BYTES_PER_STEP, 15.0)));
        assert_eq!(sent.lap(), None, "the next interval is empty");
    }
}
