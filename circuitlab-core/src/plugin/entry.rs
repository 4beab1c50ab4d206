//! The library's side of loading: what [`export_plugin!`](crate::export_plugin) expands to (feature `dynamic`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::fmt::{self, Write};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::registration::Registration;
use super::services::HostServices;
use crate::Result;
use crate::error::catch_plugin;

/// The host's services, once they are adopted.
static SERVICES: AtomicPtr<HostServices> = AtomicPtr::new(ptr::null_mut());

fn services() -> Option<&'static HostServices> {
    // SAFETY: the pointer is null, or that of `enter`, whose caller promised that it is valid for ever.
    #[allow(unsafe_code, reason = "a static cannot hold the reference itself")]
    unsafe {
        SERVICES.load(Ordering::Acquire).as_ref()
    }
}

/// Adopts the host's services, runs `init`, and hands every registration of this library over.
///
/// # Safety
/// `services` is valid for as long as the process lives, `collector` is what its functions expect, and nothing of this library but
/// constructors that allocate nothing ran before. The host calls this once it knows that both sides were built alike.
#[allow(unsafe_code, reason = "called over a C interface")]
pub unsafe fn enter(services: *const HostServices, collector: *mut c_void, init: fn() -> Result<()>) -> i64 {
    SERVICES.store(services.cast_mut(), Ordering::Release);
    // SAFETY: valid by this function's own contract.
    let Some(services) = (unsafe { services.as_ref() }) else { return -1 };
    let handed_over: Result<i64> = catch_plugin("its entry point", || {
        // A panic becomes an error that the host tells; the default hook would print a second, longer story.
        std::panic::set_hook(Box::new(|panic| tracing::debug!("{panic}")));
        // Fails where it is set already: when the library is entered for a second registry.
        let _ = tracing::subscriber::set_global_default(ToHost);
        init()?;
        let mut count = 0;
        for registration in inventory::iter::<Registration> {
            // SAFETY: the collector is the host's own.
            if !unsafe { (services.register)(collector, registration) } {
                break;
            }
            count += 1;
        }
        Ok(count)
    });
    handed_over.unwrap_or_else(|error| {
        // SAFETY: as above.
        unsafe { (services.fail)(collector, &error.to_string()) };
        -1
    })
}

/// Memory comes from the host once it is known, and before that from the system, as it does in a program of its own (tests).
struct FromHost;

#[global_allocator]
static ALLOCATOR: FromHost = FromHost;

#[allow(unsafe_code, reason = "an allocator has no safe form")]
// SAFETY: every call goes to one allocator with the caller's own arguments. A block of the system's allocator cannot reach the host's:
// nothing of the library that allocates runs before `enter`, which sets the services first.
unsafe impl GlobalAlloc for FromHost {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match services() {
            // SAFETY: the caller's layout, whose size is not zero.
            Some(host) => unsafe { (host.alloc)(layout.size(), layout.align()) },
            // SAFETY: the same.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match services() {
            // SAFETY: the block came from `alloc` with this layout.
            Some(host) => unsafe { (host.dealloc)(block, layout.size(), layout.align()) },
            // SAFETY: the same.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        match services() {
            // SAFETY: the block came from `alloc` with this layout, and the new size is not zero.
            Some(host) => unsafe { (host.realloc)(block, layout.size(), layout.align(), new_size) },
            // SAFETY: the same.
            None => unsafe { System.realloc(block, layout, new_size) },
        }
    }
}

/// Sends the library's events to the host's log; spans are not sent.
struct ToHost;

impl Subscriber for ToHost {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && services().is_some_and(|host| (host.log_enabled)(number(*metadata.level()), metadata.target()))
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        if let Some(host) = services() {
            (host.log)(number(*event.metadata().level()), event.metadata().target(), &line.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        _ => 4,
    }
}

/// An event as `message key=value`.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{gap}{value:?}"),
            name => write!(self.0, "{gap}{name}={value:?}"),
        };
    }
}
