//! The key-value store over which ranks meet: c10d's `TCPStore`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use circuitlab_core::{Error, Result};

use crate::Environment;
use crate::ffi::RawStore;

/// A connection to the store of a run. Rank 0's process hosts it, unless the launcher does.
#[derive(Debug, Clone)]
pub struct Store {
    raw: Arc<Mutex<RawStore>>,
    /// Before every key, so that nothing meets that is not of this start of this run.
    prefix: Arc<str>,
    rank: usize,
    address: Arc<str>,
}

impl Store {
    /// Hosts the store where this rank is to, and connects to it.
    ///
    /// # Errors
    /// A port that is taken, and a master that is not there within the limit; both name its address.
    pub fn open(environment: &Environment, limit: Duration) -> Result<Self> {
        let Environment { rank, ref host, port, hosted, ref attempt, .. } = *environment;
        let server = rank == 0 && !hosted;
        let address = address(host, port);
        let raw = RawStore::open(host, port, server, limit).map_err(|text| refused(rank, server, &address, &text, limit))?;
        let (raw, prefix) = (Arc::new(Mutex::new(raw)), format!("circuitlab/{attempt}/"));
        Ok(Self { raw, prefix: prefix.into(), rank, address: address.into() })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// A store that does not answer.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.lock().set(&self.key(key), value).map_err(|text| self.failed("set", key, &text))
    }

    /// The value of a key, waited for.
    ///
    /// # Errors
    /// A key that nobody has set within the limit, and a store that does not answer.
    pub fn get(&self, key: &str, limit: Duration) -> Result<Vec<u8>> {
        self.lock().get(&self.key(key), limit).map_err(|text| self.failed("get", key, &text))
    }

    /// Whether somebody has set a key.
    ///
    /// # Errors
    /// A store that does not answer.
    pub fn has(&self, key: &str) -> Result<bool> {
        self.lock().has(&self.key(key)).map_err(|text| self.failed("look up", key, &text))
    }

    /// Adds to a number, which begins at 0, and gives the sum.
    ///
    /// # Errors
    /// A store that does not answer.
    pub fn add(&self, key: &str, value: i64) -> Result<i64> {
        self.lock().add(&self.key(key), value).map_err(|text| self.failed("add to", key, &text))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, RawStore> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn failed(&self, action: &str, key: &str, text: &str) -> Error {
        let what = format!("rank {}: cannot {action} `{key}` in the store at {}", self.rank, self.address);
        Error::Invalid(format!("{what}: {}", first_line(text)))
    }
}

/// `host:port`, with brackets around what has colons of its own.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn refused(rank: usize, server: bool, address: &str, text: &str, limit: Duration) -> Error {
    let lower = text.to_lowercase();
    let what = if server && (lower.contains("eaddrinuse") || lower.contains("address already in use")) {
        "the port is in use; choose another MASTER_PORT, or end the program that has it (a run that is still ending, perhaps)".to_owned()
    } else if server && (lower.contains("eacces") || lower.contains("permission denied")) {
        "this user may not listen on that port; choose a MASTER_PORT above 1023".to_owned()
    } else if lower.contains("timed out") || lower.contains("timeout") {
        return nobody_answers(rank, address, limit);
    } else {
        first_line(text).to_owned()
    };
    let action = if server { "host the store" } else { "reach the store" };
    Error::Invalid(format!("rank {rank}: cannot {action} at {address}: {what}"))
}

/// The error where the store says nothing, be it that nobody has its port or that whoever has it does not speak.
pub(crate) fn nobody_answers(rank: usize, address: &str, limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::Invalid(format!(
        "rank {rank}: cannot reach the store at {address}: nobody answers there within {seconds} s; expected rank 0, at the host that MASTER_ADDR names; is it started, is the port open between the machines, and is it no other program's?"
    ))
}

/// What C++ says has its stack after the first line.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_end()
}
