//! Loading plugin libraries at run time (feature `loader`).
//!
//! A library runs no code before its header was read from the file's bytes and equals this build's. Then, where there is a
//! [`Probe`], a child process loads it first: what is wrong with it beyond its header ends the child and not this process. Libraries are
//! never unloaded: their code stays behind everything that they registered.

mod host;
mod inspect;
mod open;
mod probe;

use std::path::Path;

pub use inspect::{PluginFile, inspect};
pub use probe::{PASSED, Probe, REFUSED};

use super::{Origin, Registry};
use crate::{Error, Result};

/// Loads plugin libraries into a registry.
#[derive(Debug, Clone, Default)]
pub struct Loader {
    /// How a library is tried in a child process first; none trusts every library whose header fits.
    pub probe: Option<Probe>,
}

impl Loader {
    /// Loads a library and adds all that it registers, or nothing at all. A file that the registry has loaded before is left alone.
    /// Gives how many plugins were added.
    ///
    /// # Errors
    /// [`Error::Plugin`] for a file that is no plugin library, was built otherwise than this program, or fails while it is loaded;
    /// [`Error::Duplicate`] for a name that is taken.
    ///
    /// # Safety
    /// The library's code runs with the rights of this process, and its header vouches for it: what lies about its build, or has
    /// undefined behaviour of its own, is not contained.
    #[allow(unsafe_code, reason = "foreign code is foreign code")]
    pub unsafe fn load(&self, path: &Path, into: &mut Registry) -> Result<usize> {
        let path = path.canonicalize().map_err(Error::io("read", path))?;
        if into.has_loaded(&path) {
            return Ok(0);
        }
        let file = inspect(&path)?;
        file.check()?;
        if let Some(probe) = &self.probe {
            probe.try_out(&file)?;
        }
        // SAFETY: the header fits, and the caller vouches for the rest.
        let registrations = unsafe { open::open(&file) }?;
        into.add_all(&registrations, &Origin::Loaded(path))?;
        Ok(registrations.len())
    }
}
