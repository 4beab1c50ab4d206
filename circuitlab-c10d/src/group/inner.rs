//! What a group's handles share: the group itself, the count of its operations, and whether it still works.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use circuitlab_core::{Axis, Error, Result};
use tch::Device;

use super::{Limits, fault};
use crate::ffi::{Outcome, RawGroup, RawWork};
use crate::presence::{Place, Presence};
use crate::traffic::{Operation, Traffic};
use crate::work::Run;

/// An operation to begin.
pub(crate) struct Plan {
    pub(crate) operation: Operation,
    /// What it works on, for other ranks to compare.
    pub(crate) what: String,
    /// What this rank will send.
    pub(crate) bytes: u64,
}

/// What a group is made of.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) name: String,
    /// This rank's number in the run, and how many there are.
    pub(crate) world: Axis,
    /// Numbers of the members in the run.
    pub(crate) members: Vec<usize>,
    /// This rank's place among them.
    pub(crate) place: usize,
    /// Where all ranks of the run answer; none of them in a run of one.
    pub(crate) places: Arc<[Place]>,
    pub(crate) presence: Option<Arc<Presence>>,
    /// Where its tensors are.
    pub(crate) device: Device,
    pub(crate) limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Nothing where there is one member.
    raw: Option<RawGroup>,
    calls: u64,
    traffic: Traffic,
    /// What the first operation that failed said. The others' answers may come in later ones, so nothing can follow.
    broken: Option<String>,
}

impl Inner {
    pub(crate) fn new(name: String, world: Axis, members: Vec<usize>, place: usize, device: Device, limits: Limits) -> Self {
        let state = State { raw: None, calls: 0, traffic: Traffic::default(), broken: None };
        Self { name, world, members, place, places: Arc::new([]), presence: None, device, limits, state: Mutex::new(state) }
    }

    pub(crate) fn connected(mut self, raw: RawGroup, places: Arc<[Place]>, presence: Arc<Presence>) -> Self {
        self.state().raw = Some(raw);
        (self.places, self.presence) = (places, Some(presence));
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn axis(&self) -> Axis {
        Axis { rank: self.place, size: self.members.len() }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.state().traffic
    }

    /// What another rank told this one to be the matter.
    pub(crate) fn told(&self) -> Option<String> {
        self.presence.as_ref().and_then(|presence| presence.told())
    }

    /// Where the next member answers.
    pub(crate) fn next_place(&self) -> Option<Place> {
        let next = self.members.get((self.place + 1) % self.members.len())?;
        self.places.get(*next).copied()
    }

    /// Begins an operation, unless there is nobody to do it with, or nothing to do (`skip`), which all members know.
    pub(crate) fn begin(
        self: &Arc<Self>,
        plan: Plan,
        skip: bool,
        begin: impl FnOnce(&mut RawGroup) -> Outcome<RawWork>,
    ) -> Result<Option<Run>> {
        let Plan { operation, what, bytes } = plan;
        let mut state = self.state();
        if let Some(broken) = &state.broken {
            return Err(self.wrong(operation, &format!("the group is of no use since an operation failed: {broken}")));
        }
        if let Some(told) = self.told() {
            return Err(self.wrong(operation, &told));
        }
        state.calls += 1;
        let (call, what) = (state.calls, format!("{operation}{what}"));
        state.traffic.count(operation, if skip { 0 } else { bytes });
        if skip {
            return Ok(None);
        }
        let Some(raw) = &mut state.raw else { return Ok(None) };
        if let Some(presence) = &self.presence {
            presence.begin(&self.name, call, &what);
        }
        let begun = begin(raw);
        drop(state);
        match begun {
            Ok(raw) => Ok(Some(Run::new(raw, Arc::clone(self), call, what))),
            Err(text) => Err(self.failed(call, &what, &text)),
        }
    }

    /// Takes note of how an operation ended.
    pub(crate) fn ended(&self, call: u64, what: &str, outcome: Outcome<()>) -> Result<()> {
        if let Err(text) = outcome {
            return Err(self.failed(call, what, &text));
        }
        if let Some(presence) = &self.presence {
            presence.end(&self.name, call);
        }
        Ok(())
    }

    fn failed(&self, call: u64, what: &str, text: &str) -> Error {
        // Whoever was asked once says nothing new.
        let known = self.state().broken.as_ref().map(|broken| format!("an operation failed before: {broken}"));
        let cause = known.unwrap_or_else(|| fault::cause(self, call, what, text));
        let error = format!("{}, operation {call}, {what}: {cause}", self.whom());
        self.state().broken.get_or_insert_with(|| error.clone());
        Error::Invalid(error)
    }

    /// An error of an operation that was not begun.
    pub(crate) fn wrong(&self, operation: Operation, message: &str) -> Error {
        Error::Invalid(format!("{}, {operation}: {message}", self.whom()))
    }

    fn whom(&self) -> String {
        format!("rank {} of {}, group `{}`", self.world.rank, self.world.size, self.name)
    }

    /// Where a rank of the run is.
    pub(crate) fn address(&self, rank: usize) -> Option<IpAddr> {
        self.places.get(rank).map(|place| place.address.ip())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(raw) = state.raw.take() else { return };
        if let Some(presence) = &self.presence {
            presence.leave(&self.name);
        }
        if state.broken.is_some() {
            // Its destructor waits for operations that ranks may never answer.
            let ending = thread::Builder::new().name("ending a group".to_owned()).spawn(move || drop(raw));
            if let Err(error) = ending {
                tracing::debug!("no thread to end a group in: {error}");
            }
        }
    }
}
