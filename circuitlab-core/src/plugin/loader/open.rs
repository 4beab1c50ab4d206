//! Opening a library whose header fits.

use std::error::Error as _;
use std::ffi::c_void;

use libloading::Library;

use super::host::HOST;
use super::inspect::PluginFile;
use crate::plugin::abi::{AbiHeader, HEADER_SYMBOL};
use crate::plugin::registration::Registration;
use crate::plugin::services::{ENTRY_SYMBOL, Entry};
use crate::{Error, Result};

/// No library brings more plugins; one that does is not what it says.
const MOST_REGISTRATIONS: usize = 1024;

/// Opens a library for good and asks it for its registrations.
///
/// # Safety
/// The library's code runs.
#[allow(unsafe_code, reason = "foreign code is foreign code")]
pub(super) unsafe fn open(file: &PluginFile) -> Result<Vec<Registration>> {
    let fail = |message: String| Error::plugin(file.path(), message);
    // SAFETY: the caller's promise.
    let library = unsafe { open_now(file) }.map_err(|error| fail(format!("it cannot be loaded: {}", reason(&error))))?;
    // Never closed: registrations, and all that is made by them, point into it.
    let library: &'static Library = Box::leak(Box::new(library));
    let missing = |error: libloading::Error| fail(format!("it cannot be loaded: {}", reason(&error)));
    // SAFETY: the symbol is looked up by its name, and the file's header was found under the same.
    let header = unsafe { library.get::<*const AbiHeader>(HEADER_SYMBOL.as_bytes()) }.map_err(missing)?;
    // SAFETY: plain bytes, as long as the header that was read from the file.
    let in_memory = unsafe { std::ptr::read_unaligned(*header) };
    if in_memory.facts() != file.header().facts() {
        return Err(fail("its header in memory is not the one in its file".to_owned()));
    }
    // SAFETY: both sides were built alike, so the symbol has this type.
    let entry = unsafe { library.get::<Entry>(ENTRY_SYMBOL.as_bytes()) }.map_err(missing)?;
    let mut collector = Collector::default();
    // SAFETY: the services live as long as the process, and the collector as long as the call.
    let count = unsafe { entry(&raw const HOST, (&raw mut collector).cast()) };
    collector.finish(count).map_err(fail)
}

/// Every symbol is looked up now: one that is missing would otherwise end the process at its first call.
#[cfg(unix)]
#[allow(unsafe_code, reason = "foreign code is foreign code")]
unsafe fn open_now(file: &PluginFile) -> Result<Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: the caller's promise.
    unsafe { Library::open(Some(file.path()), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
}

#[cfg(not(unix))]
#[allow(unsafe_code, reason = "foreign code is foreign code")]
unsafe fn open_now(file: &PluginFile) -> Result<Library, libloading::Error> {
    // SAFETY: the caller's promise.
    unsafe { Library::new(file.path()) }
}

/// libloading's own words say only what it tried.
fn reason(error: &libloading::Error) -> String {
    let text = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    text.lines().next().unwrap_or_default().to_owned()
}

/// What a library hands over.
#[derive(Default)]
struct Collector {
    registrations: Vec<Registration>,
    failure: Option<String>,
    overrun: bool,
}

impl Collector {
    fn finish(self, count: i64) -> Result<Vec<Registration>, String> {
        if let Some(failure) = self.failure {
            return Err(format!("it failed while it was loaded: {failure}"));
        }
        if self.overrun {
            return Err(format!("it registers more than {MOST_REGISTRATIONS} plugins; expected at most as many"));
        }
        if usize::try_from(count) != Ok(self.registrations.len()) {
            return Err(format!("it says that it registers {count} plugins, and registered {}", self.registrations.len()));
        }
        if self.registrations.is_empty() {
            return Err("it registers no plugin; does its crate use the modules that hold the `register!` lines?".to_owned());
        }
        Ok(self.registrations)
    }
}

/// [`HostServices::register`](crate::plugin::services::HostServices::register).
///
/// # Safety
/// `collector` is the pointer that the entry was called with.
#[allow(unsafe_code, reason = "called over a C interface")]
pub(super) unsafe fn register(collector: *mut c_void, registration: &Registration) -> bool {
    // SAFETY: the pointer of `open`, which is exclusive while the entry runs.
    let collector = unsafe { &mut *collector.cast::<Collector>() };
    collector.overrun |= collector.registrations.len() == MOST_REGISTRATIONS;
    if !collector.overrun {
        collector.registrations.push(*registration);
    }
    !collector.overrun
}

/// [`HostServices::fail`](crate::plugin::services::HostServices::fail).
///
/// # Safety
/// `collector` is the pointer that the entry was called with.
#[allow(unsafe_code, reason = "called over a C interface")]
pub(super) unsafe fn fail(collector: *mut c_void, reason: &str) {
    // SAFETY: the pointer of `open`, which is exclusive while the entry runs.
    let collector = unsafe { &mut *collector.cast::<Collector>() };
    collector.failure = Some(reason.to_owned());
}
