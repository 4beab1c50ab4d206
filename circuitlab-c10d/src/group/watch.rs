//! Waiting for an operation, with an eye on the others.

use std::time::{Duration, Instant};

use tch::Device;

use crate::ffi::{Outcome, RawWork};
use crate::group::Inner;
use crate::presence::{Answer, ask_within};

/// How often it is looked whether another rank tells of a fault.
const SLICE: Duration = Duration::from_millis(500);

/// To ask all ranks, and to tell all: as long as one that does not answer holds that up.
const FINDING: Duration = Duration::from_secs(4);

/// Waits for an operation: as long as it may take while all ranks answer, but no longer than until one that does not is noticed.
///
/// Each rank has an eye on the next one of the group, and tells all when it finds it gone or silent. So everybody is watched, and the
/// number of questions does not grow with the square of the ranks.
pub(crate) fn wait(group: &Inner, work: &mut RawWork) -> Outcome<()> {
    let begun = Instant::now();
    // Half of the time is for the answer; what is left is to find out more, and to tell.
    let half = group.limits.silent.saturating_sub(FINDING.min(group.limits.silent / 4)) / 2;
    let mut question = half;
    loop {
        if let Some(outcome) = wait_a_little(group, work, SLICE.min(half.max(Duration::from_millis(1)))) {
            return outcome;
        }
        let waited = begun.elapsed();
        let given_up = || Err(format!("given up after {:.1} s", begun.elapsed().as_secs_f64()));
        if group.told().is_some() {
            return given_up();
        }
        // Gloo ends its own waiting at the limit, and knows more of the cause.
        if waited > group.limits.longest + Duration::from_secs(1) {
            return given_up();
        }
        if waited >= question {
            if let Some(next) = group.next_place()
                && matches!(ask_within(&[next], &group.name, half)[..], [Answer::Gone | Answer::Silent])
                && !work.is_over()
            {
                return given_up();
            }
            question = begun.elapsed() + half;
        }
    }
}

/// How often an operation on a device is looked at.
const POLL: Duration = Duration::from_micros(50);

/// Waits so long at most; gives nothing where it was not long enough.
fn wait_a_little(group: &Inner, work: &mut RawWork, slice: Duration) -> Option<Outcome<()>> {
    if group.device == Device::Cpu {
        return match work.wait(slice) {
            Err(_) if !work.is_over() => None,
            outcome => Some(outcome),
        };
    }
    // A wait on NCCL that is too short would abort the operation.
    let begun = Instant::now();
    while !work.is_over() {
        if begun.elapsed() > slice {
            return None;
        }
        std::thread::sleep(POLL);
    }
    Some(work.wait(slice))
}
