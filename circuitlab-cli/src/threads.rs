//! How libtorch's threads wait for each other.

use std::env;
use std::process::Command;

/// What OpenMP reads once, when its library is loaded, before `main`.
const POLICY: &str = "OMP_WAIT_POLICY";

/// Makes this process again with OpenMP threads that sleep while they wait, unless the user chose a policy.
///
/// By default they spin. Where a core is shared, be it with our own loader threads or with another machine's work, the spinning
/// threads take the time that the thread they wait for needs: the same cache took 10 s and 72 s in two runs on two shared cores,
/// and 12 s in both where threads sleep. The library has no call for it, only the variable.
#[cfg(unix)]
pub(crate) fn wait_asleep() {
    use std::os::unix::process::CommandExt;

    if env::var_os(POLICY).is_some() || env::var_os("GOMP_SPINCOUNT").is_some() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        // Comes back only where it fails; then this process goes on as it is.
        let error = Command::new(program).args(env::args_os().skip(1)).env(POLICY, "PASSIVE").exec();
        tracing::debug!("cannot start again with {POLICY}: {error}");
    }
}

#[cfg(not(unix))]
pub(crate) fn wait_asleep() {}
