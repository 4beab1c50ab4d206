//! Collectives, meetings and faults between processes: each test starts itself again for every rank.
#![allow(clippy::print_stderr, reason = "a rank tells the test that started it what it got")]

mod faults;
mod meeting;
#[cfg(target_os = "linux")]
mod nccl;
mod operations;
mod ranks;
mod volume;
