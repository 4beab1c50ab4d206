//! Signals that ask a run to stop: those that schedulers send before they take a machine away.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

/// From here on SIGTERM and SIGUSR1 set this flag, and no longer end the process at once; a second one does.
///
/// # Errors
/// What the system returns.
#[cfg(unix)]
pub(crate) fn asks_to_stop() -> Result<&'static AtomicBool> {
    use std::sync::atomic::Ordering;
    use std::thread;

    use signal_hook::consts::{SIGTERM, SIGUSR1};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::{emulate_default_handler, signal_name};

    static ASKED: AtomicBool = AtomicBool::new(false);

    let mut signals = Signals::new([SIGTERM, SIGUSR1]).context("cannot listen to signals")?;
    let listen = move || {
        for signal in signals.forever() {
            let name = signal_name(signal).unwrap_or("a signal");
            if ASKED.swap(true, Ordering::Relaxed) {
                // Comes back only where it fails.
                let failed = emulate_default_handler(signal);
                tracing::warn!("{name} again, which does not end this process: {failed:?}");
            } else {
                tracing::warn!("{name}: the run stops after its next step, with a checkpoint; a second signal ends it at once");
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(listen).context("cannot listen to signals")?;
    Ok(&ASKED)
}

/// Elsewhere nothing sets the flag.
#[cfg(not(unix))]
pub(crate) fn asks_to_stop() -> Result<&'static AtomicBool> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Ok(&NEVER)
}
