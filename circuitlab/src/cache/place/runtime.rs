//! The threads on which requests to object stores run; whoever asks waits for the answer.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// Requests wait for the network, so that two threads serve many of them.
const THREADS: usize = 2;

/// Waits for a future.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> Result<T> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if RUNTIME.get().is_none() {
        let made = Builder::new_multi_thread().worker_threads(THREADS).thread_name("object-store").enable_all().build();
        let made = made.map_err(|error| Error::Invalid(format!("cannot start the threads of the object store: {error}")))?;
        // A second thread may have been faster.
        let _ = RUNTIME.set(made);
    }
    RUNTIME
        .get()
        .map(|runtime| runtime.block_on(future))
        .ok_or_else(|| Error::Invalid("there are no threads for the object store".to_owned()))
}
