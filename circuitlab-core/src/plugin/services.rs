//! What the host lends to a plugin library for good: its allocator, its log, and where registrations go.

use std::ffi::c_void;

use super::registration::Registration;

/// The name of the exported function.
#[cfg(feature = "loader")]
pub(super) const ENTRY_SYMBOL: &str = "circuitlab_plugin_entry";

/// The exported function: adopts the services and hands every registration of the library over, one by one, with `collector` passed on.
/// Gives how many they were, or -1 after a failure that it told by [`HostServices::fail`].
pub type Entry = unsafe extern "C" fn(services: *const HostServices, collector: *mut c_void) -> i64;

/// Lent to a library when it is loaded; valid as long as the process lives.
///
/// No function of it panics. Both sides were built by one compiler from one source, or this is never reached: so its functions may
/// take Rust's own types.
#[repr(C)]
#[derive(Debug)]
pub struct HostServices {
    /// The host's global allocator, so that memory made on one side may be freed on the other.
    pub alloc: unsafe extern "C" fn(size: usize, align: usize) -> *mut u8,
    /// Frees what [`alloc`](Self::alloc) gave.
    pub dealloc: unsafe extern "C" fn(block: *mut u8, size: usize, align: usize),
    /// Resizes what [`alloc`](Self::alloc) gave.
    pub realloc: unsafe extern "C" fn(block: *mut u8, size: usize, align: usize, new_size: usize) -> *mut u8,
    /// Whether the host wants events of a level (0 error to 4 trace) and a target.
    pub log_enabled: fn(level: u8, target: &str) -> bool,
    /// Logs a line.
    pub log: fn(level: u8, target: &str, line: &str),
    /// Takes one registration; `false` when it takes no more.
    pub register: unsafe fn(collector: *mut c_void, registration: &Registration) -> bool,
    /// Takes the reason why a library cannot be used.
    pub fail: unsafe fn(collector: *mut c_void, reason: &str),
}
