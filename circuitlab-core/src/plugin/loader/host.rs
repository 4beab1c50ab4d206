//! The services of this program.

use std::alloc::{Layout, alloc, dealloc, realloc};
use std::ptr;

use tracing::{debug, enabled, error, info, trace, warn};

use super::open;
use crate::plugin::services::HostServices;

/// Lent to every library.
pub(super) static HOST: HostServices = HostServices {
    alloc: host_alloc,
    dealloc: host_dealloc,
    realloc: host_realloc,
    log_enabled,
    log,
    register: open::register,
    fail: open::fail,
};

#[allow(unsafe_code, reason = "an allocator has no safe form")]
unsafe extern "C" fn host_alloc(size: usize, align: usize) -> *mut u8 {
    // SAFETY: the library's allocator passes the size and alignment of a layout, whose size is not zero.
    Layout::from_size_align(size, align).map_or(ptr::null_mut(), |layout| unsafe { alloc(layout) })
}

#[allow(unsafe_code, reason = "an allocator has no safe form")]
unsafe extern "C" fn host_dealloc(block: *mut u8, size: usize, align: usize) {
    if let Ok(layout) = Layout::from_size_align(size, align) {
        // SAFETY: the block came from `host_alloc` or `host_realloc` with this layout.
        unsafe { dealloc(block, layout) }
    }
}

#[allow(unsafe_code, reason = "an allocator has no safe form")]
unsafe extern "C" fn host_realloc(block: *mut u8, size: usize, align: usize, new_size: usize) -> *mut u8 {
    // SAFETY: the block came from `host_alloc` or `host_realloc` with this layout, and the new size is not zero.
    Layout::from_size_align(size, align).map_or(ptr::null_mut(), |layout| unsafe { realloc(block, layout, new_size) })
}

/// Events of libraries have one target each here, since a call site's target is fixed when it is compiled; theirs is told in the line.
fn log_enabled(level: u8, _: &str) -> bool {
    match level {
        0 => enabled!(target: "plugin", tracing::Level::ERROR),
        1 => enabled!(target: "plugin", tracing::Level::WARN),
        2 => enabled!(target: "plugin", tracing::Level::INFO),
        3 => enabled!(target: "plugin", tracing::Level::DEBUG),
        _ => enabled!(target: "plugin", tracing::Level::TRACE),
    }
}

fn log(level: u8, from: &str, line: &str) {
    match level {
        0 => error!(target: "plugin", "{from}: {line}"),
        1 => warn!(target: "plugin", "{from}: {line}"),
        2 => info!(target: "plugin", "{from}: {line}"),
        3 => debug!(target: "plugin", "{from}: {line}"),
        _ => trace!(target: "plugin", "{from}: {line}"),
    }
}
