//! `circuitlab bench`: what is compared is measured in one run, in rotation, so that a machine that grows slower or faster
//! meanwhile does so for all alike.

mod attribute;
mod cache;
mod codec;
mod floor;
mod forward;
mod run;
mod samples;
mod step;

pub(super) use run::run;
pub(super) use samples::spec;
