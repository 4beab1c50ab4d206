//! `circuitlab launch`: this program several times, as the ranks of one run.

mod outcome;
mod ranks;
mod watch;

pub(crate) use outcome::RankFailed;
pub(super) use watch::run;
