//! Operations that have begun.

use std::fmt;
use std::sync::Arc;

use circuitlab_core::Result;
use tch::Tensor;

use crate::ffi::RawWork;
use crate::group::{Inner, watch};

/// An operation under way, to be ended by [`wait`](Self::wait). It owns the tensors that it reads and writes.
///
/// Where it is dropped it is waited for all the same, at most the group's time limit; that it failed shows in the group's next operation.
#[must_use = "an operation gives its result where it is waited for"]
pub struct Work<T = Tensor> {
    run: Option<Run>,
    finish: Option<Box<dyn FnOnce() -> Result<T> + Send>>,
}

/// The operation itself, unless there is nobody to do it with.
pub(crate) struct Run {
    raw: RawWork,
    group: Arc<Inner>,
    call: u64,
    what: String,
}

impl Run {
    pub(crate) fn new(raw: RawWork, group: Arc<Inner>, call: u64, what: String) -> Self {
        Self { raw, group, call, what }
    }

    fn wait(mut self) -> Result<()> {
        let outcome = watch::wait(&self.group, &mut self.raw);
        self.group.ended(self.call, &self.what, outcome)
    }
}

impl<T> Work<T> {
    pub(crate) fn new(run: Option<Run>, finish: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self { run, finish: Some(Box::new(finish)) }
    }

    /// Waits for the end, and gives the result.
    ///
    /// # Errors
    /// A rank that did not answer within the group's limit, or is gone; the message names it.
    pub fn wait(mut self) -> Result<T> {
        let outcome = self.run.take().map_or(Ok(()), Run::wait);
        let finish = self.finish.take();
        outcome?;
        match finish {
            Some(finish) => finish(),
            None => Err(circuitlab_core::Error::Invalid("an operation was waited for twice".to_owned())),
        }
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        let Some(run) = self.run.take() else { return };
        if let Err(error) = run.wait() {
            // Whoever did not wait has an error of its own to tell.
            tracing::debug!("an operation that nobody waited for failed: {error}");
        }
    }
}

impl<T> fmt::Debug for Work<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Work").field("what", &self.run.as_ref().map(|run| &run.what)).finish_non_exhaustive()
    }
}
