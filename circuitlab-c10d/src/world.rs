//! All ranks of a run: how they meet.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use circuitlab_core::{Axis, Error, Result};
use tch::Device;

use crate::environment::Environment;
use crate::ffi::{Outcome, RawGroup};
use crate::group::{Inner, Limits, ProcessGroup};
use crate::late::within;
use crate::place;
use crate::presence::{Place, Presence};
use crate::store::{Store, address, first_line, nobody_answers};

/// Of a store that takes connections and does not answer.
const HANGS: &str = "the store at rank 0 does not answer: it hangs, or is cut off";

/// All ranks of a run, met at the master's address.
#[derive(Debug)]
pub struct World {
    axis: Axis,
    limit: Duration,
    /// Nothing in a run of one.
    meeting: Option<Meeting>,
    names: Mutex<BTreeSet<String>>,
}

/// What ranks that have met know of each other.
#[derive(Debug)]
struct Meeting {
    store: Store,
    /// This rank's address, which Gloo's connections go through.
    own: IpAddr,
    places: Arc<[Place]>,
    presence: Arc<Presence>,
}

impl World {
    /// Meets the other ranks, at most `limit` long. A run of one meets nobody and needs no network.
    ///
    /// # Errors
    /// What [`Store::open`] returns; ranks that do not come, by number; two processes of one number; another number of ranks.
    pub fn join(environment: &Environment, limit: Duration) -> Result<Self> {
        let axis = Axis { rank: environment.rank, size: environment.ranks };
        let meeting = if axis.size == 1 { None } else { Some(Meeting::hold_within(environment.clone(), axis, limit)?) };
        Ok(Self { axis, limit, meeting, names: Mutex::default() })
    }

    /// This rank's number, and how many there are.
    pub fn axis(&self) -> Axis {
        self.axis
    }

    /// The store that the ranks met over; none in a run of one.
    pub fn store(&self) -> Option<&Store> {
        self.meeting.as_ref().map(|meeting| &meeting.store)
    }

    /// Makes a group of these ranks for tensors on the CPU, whose operations end within the limits. All of them call this, with the same
    /// arguments, and wait for each other; a name makes one group.
    ///
    /// # Errors
    /// Members that are no ranks, or not this one; a name that was used; members that do not come.
    pub fn group(&self, name: &str, members: &[usize], limits: Limits) -> Result<ProcessGroup> {
        self.group_on(Device::Cpu, name, members, limits)
    }

    /// The same for tensors on this rank's device: the CPU, or a CUDA device that no other rank has.
    ///
    /// # Errors
    /// As [`World::group`]; without the library for NCCL, where it is looked for and how it is built.
    pub fn group_on(&self, device: Device, name: &str, members: &[usize], limits: Limits) -> Result<ProcessGroup> {
        let Axis { rank, size } = self.axis;
        let wrong = |message: &str| Error::Invalid(format!("rank {rank} of {size}, group `{}`: {message}", name.escape_debug()));
        let ordered = members.is_sorted_by(|before, after| before < after) && members.last().is_some_and(|last| *last < size);
        let place = members.iter().position(|member| *member == rank).filter(|_| ordered);
        let place = place.ok_or_else(|| wrong(&format!("the members are {members:?}; expected ranks in order, this one among them")))?;
        if name.is_empty() || name.contains(char::is_control) {
            return Err(wrong("expected a name in one line"));
        }
        if !self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            return Err(wrong("there is a group of that name; expected each name once"));
        }
        let inner = Inner::new(name.to_owned(), self.axis, members.to_vec(), place, device, limits);
        let Some(meeting) = self.meeting.as_ref().filter(|_| members.len() > 1) else { return Ok(ProcessGroup::new(inner)) };
        let axis = Axis { rank: place, size: members.len() };
        let (store, own, group, of) = (meeting.store.clone(), meeting.own, name.to_owned(), members.to_vec());
        let times = [self.limit, limits.longest];
        let raw =
            within(self.limit, move || connect(&store, own, (device, &group, &of), axis, times)).unwrap_or_else(|| Err(HANGS.to_owned()));
        let raw = raw.map_err(|text| wrong(&format!("the members {members:?} did not connect: {}", first_line(&text))))?;
        Ok(ProcessGroup::new(inner.connected(raw, Arc::clone(&meeting.places), Arc::clone(&meeting.presence))))
    }
}

impl Meeting {
    /// Meets the others; ends within the limit although the store takes connections and says nothing.
    fn hold_within(environment: Environment, axis: Axis, limit: Duration) -> Result<Self> {
        let at = address(&environment.host, environment.port);
        within(limit, move || Self::hold(&environment, axis, limit)).unwrap_or_else(|| Err(nobody_answers(axis.rank, &at, limit)))
    }

    fn hold(environment: &Environment, axis: Axis, limit: Duration) -> Result<Self> {
        let deadline = Deadline { at: Instant::now() + limit, limit };
        let named = place::of_interface()?;
        let store = Store::open(environment, limit)?;
        let own = match named {
            Some(address) => address,
            None => place::towards(&environment.host, environment.port)?,
        };
        let table = Table { store: &store, axis, meets_at: address(&environment.host, environment.port), deadline };
        if store.add(&format!("count/{}", axis.rank), 1)? > 1 {
            return Err(table.wrong("another process has this rank already; expected each rank once"));
        }
        let own = seen_by_others(own, named.is_some(), &table)?;
        let presence = Presence::open(own).map_err(|error| table.wrong(&format!("cannot listen at {own}: {error}")))?;
        let places = table.exchange("place", &presence.place().to_string())?;
        let parsed: Option<Arc<[Place]>> = places.iter().map(|text| text.parse().ok()).collect();
        let places = parsed.ok_or_else(|| table.wrong("another program uses the store at that address"))?;
        Ok(Self { store, own, places, presence: Arc::new(presence) })
    }
}

/// Connects the members of a group. They are part of the key that they meet at, so that ranks which disagree about them never do.
fn connect(
    store: &Store,
    own: IpAddr,
    (device, name, members): (Device, &str, &[usize]),
    axis: Axis,
    limits: [Duration; 2],
) -> Outcome<RawGroup> {
    let prefix = store.key(&format!("group/{name}/{members:?}"));
    let mut store = store.lock();
    match device {
        Device::Cpu => RawGroup::gloo(&mut store, &prefix, axis, &own.to_string(), limits),
        Device::Cuda(index) => RawGroup::nccl(&mut store, &prefix, axis, index, limits[1]),
        other => Err(format!("there are no groups on {other:?}; expected the CPU or a CUDA device")),
    }
}

/// This rank's address as ranks on other machines see it: the way to a master on this machine is a loopback one.
fn seen_by_others(own: IpAddr, is_named: bool, table: &Table<'_>) -> Result<IpAddr> {
    let said = table.exchange("address", &format!("{} {own}", table.axis.size))?;
    let mut addresses = Vec::with_capacity(said.len());
    for (rank, text) in said.iter().enumerate() {
        let (ranks, address) = text.split_once(' ').unwrap_or_default();
        if ranks.parse() != Ok(table.axis.size) {
            return Err(table.wrong(&format!("rank {rank} says that there are {ranks} ranks; expected the same number everywhere")));
        }
        addresses.push(address.parse::<IpAddr>().map_err(|_| table.wrong("another program uses the store at that address"))?);
    }
    match addresses.iter().find(|address| !address.is_loopback()) {
        Some(other) if own.is_loopback() && !is_named => place::towards(&other.to_string(), 1),
        _ => Ok(own),
    }
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    limit: Duration,
}

/// Where ranks lay down what they say, and read what the others say.
struct Table<'a> {
    store: &'a Store,
    axis: Axis,
    meets_at: String,
    deadline: Deadline,
}

impl Table<'_> {
    /// What each rank says under a key, in their order; waits for all.
    fn exchange(&self, key: &str, own: &str) -> Result<Vec<String>> {
        self.store.set(&format!("{key}/{}", self.axis.rank), own.as_bytes())?;
        let mut said = Vec::with_capacity(self.axis.size);
        for rank in 0..self.axis.size {
            let left = self.deadline.at.saturating_duration_since(Instant::now());
            match self.store.get(&format!("{key}/{rank}"), left) {
                Ok(value) => said.push(String::from_utf8_lossy(&value).into_owned()),
                Err(error) => return Err(self.missing(key).unwrap_or(error)),
            }
        }
        Ok(said)
    }

    /// Which ranks have not come; nothing where the store cannot say.
    fn missing(&self, key: &str) -> Option<Error> {
        let there = (0..self.axis.size).map(|rank| self.store.has(&format!("{key}/{rank}"))).collect::<Result<Vec<_>>>().ok()?;
        let missing: Vec<String> = there.iter().enumerate().filter(|(_, there)| !**there).map(|(rank, _)| rank.to_string()).collect();
        let (shown, more) = missing.split_at(missing.len().min(16));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let (ranks, limit) = (if missing.len() == 1 { "rank" } else { "ranks" }, self.deadline.limit.as_secs_f64());
        (!missing.is_empty()).then(|| self.wrong(&format!("{ranks} {}{more} did not come within {limit} s", shown.join(", "))))
    }

    fn wrong(&self, message: &str) -> Error {
        Error::Invalid(format!("rank {} of {}, meeting at {}: {message}", self.axis.rank, self.axis.size, self.meets_at))
    }
}
