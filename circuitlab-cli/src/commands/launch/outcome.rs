//! How a launch ended: which rank failed first, and with what.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use signal_hook::low_level::signal_name;

/// A rank that is killed says nothing, and is noticed after others have said that it is gone; so it may have been the first by this much.
const NOTICED_LATE: Duration = Duration::from_millis(100);

/// The end of one rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) status: ExitStatus,
    /// When it said what it fails with, or was seen to have ended.
    pub(super) at: Instant,
    /// By the launching process.
    pub(super) killed: bool,
}

/// A rank failed.
#[derive(Debug)]
pub(crate) struct RankFailed {
    line: String,
    /// That of the first that failed: what it returned, or 128 and the number of the signal that ended it.
    pub(crate) code: u8,
}

impl Display for RankFailed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl Error for RankFailed {}

/// Success where all ranks succeeded; else the first failure.
///
/// # Errors
/// [`RankFailed`].
pub(super) fn of(ends: &[End]) -> anyhow::Result<()> {
    let earliest = |end: &End| if end.status.signal().is_some() { end.at.checked_sub(NOTICED_LATE).unwrap_or(end.at) } else { end.at };
    let own = ends.iter().enumerate().filter(|(_, end)| !(end.status.success() || end.killed));
    let Some((rank, first)) = own.min_by_key(|(_, end)| earliest(end)) else { return Ok(()) };
    let (how, code) = match first.status.signal() {
        Some(signal) => (format!("was ended by {}", named(signal)), 128 + signal),
        None => (format!("ended with exit code {}", first.status.code().unwrap_or(1)), first.status.code().unwrap_or(1)),
    };
    let late: Vec<String> = ends.iter().enumerate().filter(|(_, end)| end.killed).map(|(rank, _)| rank.to_string()).collect();
    let late = match &late[..] {
        [] => String::new(),
        [one] => format!("; rank {one} went on, and was killed"),
        several => format!("; ranks {} went on, and were killed", several.join(", ")),
    };
    let line = format!("rank {rank} of {} {how}{late}", ends.len());
    Err(RankFailed { line, code: u8::try_from(code).unwrap_or(1) }.into())
}

fn named(signal: i32) -> String {
    signal_name(signal).map_or_else(|| format!("signal {signal}"), |name| format!("signal {signal} ({name})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn the_first_failure_is_told_with_its_code() {
        let begin = Instant::now();
        let end = |status, after_ms| End { status, at: begin + Duration::from_millis(after_ms), killed: false };
        let killed = |after_ms| End { killed: true, ..end(ExitStatus::from_raw(9), after_ms) };
        let failed = |ends: &[End]| {
            let error = of(ends).expect_err("one failed").downcast::<RankFailed>().expect("a rank");
            (error.code, error.line)
        };
        assert!(of(&[end(exit(0), 1), end(exit(0), 0)]).is_ok());
        assert_eq!(failed(&[end(exit(1), 20), end(exit(3), 10)]), (3, "rank 1 of 2 ended with exit code 3".into()));
        assert_eq!(
            failed(&[end(exit(1), 1000), end(ExitStatus::from_raw(9), 1010)]),
            (137, "rank 1 of 2 was ended by signal 9 (SIGKILL)".into())
        );
        assert_eq!(
            failed(&[killed(900), end(exit(2), 1000), end(exit(0), 2000), killed(1000)]),
            (2, "rank 1 of 4 ended with exit code 2; ranks 0, 3 went on, and were killed".into())
        );
        assert!(failed(&[end(exit(2), 0), killed(1)]).1.ends_with("; rank 1 went on, and was killed"));
    }
}
