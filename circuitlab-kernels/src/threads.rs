//! Threads for loops of our own.
//!
//! libtorch has threads too, and each of ours that calls it would wake as many again. So the workers here run libtorch on one thread
//! each: a large product is cut into blocks, and each worker multiplies its own, with the block still in its core's cache for
//! whatever comes next.

use std::sync::{Arc, Mutex, PoisonError};

use circuitlab_core::{Error, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

static POOL: Mutex<Option<Arc<ThreadPool>>> = Mutex::new(None);

/// A pool of as many threads as libtorch has now, kept until that number changes.
///
/// # Errors
/// A system that gives no threads.
pub fn pool() -> Result<Arc<ThreadPool>> {
    let count = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    let mut kept = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = kept.as_ref().filter(|pool| pool.current_num_threads() == count) {
        return Ok(Arc::clone(pool));
    }
    let name = |index| format!("kernels-{index}");
    let made = ThreadPoolBuilder::new().num_threads(count).thread_name(name).build();
    let pool = Arc::new(made.map_err(|error| Error::Invalid(format!("the system gives no {count} threads: {error}")))?);
    // libtorch keeps a number for each thread, which the first question sets to a common one, and the last call sets the common one:
    // to what it was.
    let _ = pool.broadcast(|_| {
        tch::get_num_threads();
        tch::set_num_threads(1);
    });
    tch::set_num_threads(count as i32);
    *kept = Some(Arc::clone(&pool));
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_run_libtorch_alone_and_the_caller_keeps_its_threads() {
        for count in [2, 3, 1] {
            tch::set_num_threads(count);
            let pool = pool().expect("threads");
            assert_eq!(pool.current_num_threads(), count as usize);
            assert_eq!(pool.broadcast(|_| tch::get_num_threads()), vec![1; count as usize]);
            assert_eq!(tch::get_num_threads(), count);
            assert!(Arc::ptr_eq(&pool, &super::pool().expect("kept")));
        }
    }
}
