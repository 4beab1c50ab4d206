//! What goes wrong with a hub: for good, or for now.

use std::thread::sleep;
use std::time::Duration;

use super::spec::HubSpec;
use crate::Error;

/// How often something is tried.
pub(super) const TRIES: u32 = 4;

/// The pause after the first try; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What a hub may ask for with `Retry-After` and get.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) enum Fault {
    /// The hub cannot be reached, breaks off or is busy: another try may go well.
    Passing {
        message: String,
        /// When the hub wants to be asked again.
        after: Option<Duration>,
    },
    /// The hub's answer is a definite one, or makes no sense.
    Final(String),
    /// Of this machine: a full disk.
    Own(Error),
}

impl Fault {
    pub(super) fn passing(message: impl Into<String>) -> Self {
        Self::Passing { message: message.into(), after: None }
    }

    /// The error that a user sees; `file` is what was being fetched.
    pub(super) fn tell(self, spec: &HubSpec, file: Option<&str>) -> Error {
        let message = match self {
            Self::Own(error) => return error,
            Self::Passing { message, .. } => {
                let kept = if file.is_some() { ": what has come is kept" } else { "" };
                format!("{message}; tried {TRIES} times, try again later{kept}")
            }
            Self::Final(message) => message,
        };
        let repository = format!("`{}` at revision `{}`", spec.name(), spec.revision());
        let message = file.map_or_else(|| message.clone(), |file| format!("file `{}`: {message}", file.escape_default()));
        Error::Hub { repository, message }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

impl From<circuitlab_core::Error> for Fault {
    fn from(error: circuitlab_core::Error) -> Self {
        Self::Own(error.into())
    }
}

/// Counts tries and pauses between them.
#[derive(Debug)]
pub(super) struct Patience {
    tries: u32,
    used: u32,
}

impl Patience {
    pub(super) fn new(tries: u32) -> Self {
        Self { tries, used: 0 }
    }

    /// Forgets the tries so far: something was gained.
    pub(super) fn renew(&mut self) {
        self.used = 0;
    }

    /// Pauses after a fault that may pass; gives the fault back where it cannot pass or there were tries enough.
    pub(super) fn bear(&mut self, fault: Fault) -> Result<(), Fault> {
        self.used += 1;
        match fault {
            Fault::Passing { message, after } if self.used < self.tries => {
                let pause = after.unwrap_or(FIRST_PAUSE * 2_u32.pow(self.used - 1)).min(LONGEST_PAUSE);
                tracing::warn!("hub: {message}; trying again in {:.1} s", pause.as_secs_f64());
                sleep(pause);
                Ok(())
            }
            other => Err(other),
        }
    }
}

/// Tries until it goes well, cannot go well, or was tried enough.
pub(super) fn trying<T>(tries: u32, mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    let mut patience = Patience::new(tries);
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(fault) => patience.bear(fault)?,
        }
    }
}
