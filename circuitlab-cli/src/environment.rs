//! What libraries under this program read from the environment once, when they are loaded.

use std::env;
use std::process::Command;

/// Makes this process again with the variables below, where the user has not chosen otherwise.
///
/// - OpenMP threads sleep while they wait. By default they spin. Where a core is shared, be it with our own loader threads or with
///   another machine's work, the spinning threads take the time that the thread they wait for needs: the same cache took 10 s and
///   72 s in two runs on two shared cores, and 12 s in both where threads sleep. The library has no call for it, only the variable.
/// - libtorch asks the system for huge pages. A training step goes through gigabytes in pieces of a kilobyte or two, each on another
///   page of the usual size: it took 1.4 times as long with those.
#[cfg(unix)]
pub(crate) fn prepare() {
    use std::os::unix::process::CommandExt;

    const MARK: &str = "THP_MEM_ALLOC_ENABLE";
    let waits = env::var_os("OMP_WAIT_POLICY").is_some() || env::var_os("GOMP_SPINCOUNT").is_some();
    let unset = [("OMP_WAIT_POLICY", "PASSIVE", waits), (MARK, "1", env::var_os(MARK).is_some())];
    let wanted: Vec<(&str, &str)> = unset.into_iter().filter(|(.., set)| !set).map(|(name, value, _)| (name, value)).collect();
    if wanted.is_empty() {
        return;
    }
    if let Ok(program) = env::current_exe() {
        // Comes back only where it fails; then this process goes on as it is.
        let error = Command::new(program).args(env::args_os().skip(1)).envs(wanted).exec();
        tracing::debug!("cannot start again with other variables: {error}");
    }
}

#[cfg(not(unix))]
pub(crate) fn prepare() {}
