//! Limits for what has none of its own.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// What is late for its own limit by this much will not come.
const GRACE: Duration = Duration::from_secs(2);

/// Does what may wait for an answer for ever, as c10d's store waits for its host's; nothing where that has not ended within `limit` and a
/// little more. The thread that waits is then left behind: nobody can end it but the process.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, done) = channel();
    let work = move || {
        // Nobody listens any more where it was late.
        let _ = sender.send(work());
    };
    thread::Builder::new().name("meeting".to_owned()).spawn(work).ok()?;
    done.recv_timeout(limit.saturating_add(GRACE)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_left_behind() {
        assert_eq!(within(Duration::ZERO, || 5), Some(5));
        assert_eq!(within(Duration::ZERO, || thread::sleep(Duration::from_mins(10))), None);
    }
}
