//! Plugin libraries that a command line, the environment or a config names.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use circuitlab::plugins::{SEARCH_PATH, libraries_in, search};
use circuitlab_core::plugin::loader::{Loader, PASSED, Probe, REFUSED};
use circuitlab_core::{Error as CoreError, Registry};

use crate::args::{Cli, Command, PluginsCommand};
use crate::commands::{cache, train};
use crate::output::report::chain;
use crate::output::stdout;

/// Loads every library that this run names into the registry.
pub(crate) fn load(cli: &Cli, registry: &mut Registry) -> anyhow::Result<()> {
    if let Command::Plugins(PluginsCommand::Check(_) | PluginsCommand::New(_) | PluginsCommand::Probe(_)) | Command::Launch(_) =
        &cli.command
    {
        // They must work where a library does not, or leave it to the processes that they start.
        return Ok(());
    }
    let (configured, recorded) = match &cli.command {
        Command::Cache(args) => (cache::plugin_paths(args)?, Vec::new()),
        Command::Train(args) => train::plugin_paths(args)?,
        _ => (Vec::new(), Vec::new()),
    };
    let mut files = Vec::new();
    for path in cli.plugin.iter().chain(&configured) {
        files.extend(libraries_in(path)?);
    }
    files.extend(search(&env::var_os(SEARCH_PATH).unwrap_or_default())?);
    let loader = loader();
    for file in files {
        load_one(&loader, &file, registry)?;
    }
    // A run's own record may be older than its libraries: what is missing after all is told where it is needed.
    for file in recorded {
        match load_one(&loader, &file, registry) {
            Err(error) if matches!(error.downcast_ref(), Some(CoreError::Duplicate { .. })) => {}
            Err(error) => tracing::warn!("the run was made with a plugin library that cannot be loaded any more: {}", chain(&error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Loads a library into a registry of its own, without a trial, and says how that went in the words that a trial listens for.
pub(super) fn try_here(file: &Path) -> anyhow::Result<()> {
    match load_one(&Loader::default(), file, &mut Registry::default()) {
        Ok(()) => stdout::print(PASSED),
        Err(error) => stdout::print(&format!("{REFUSED}{}", chain(&error))),
    }
}

/// Loads one library.
pub(super) fn load_one(loader: &Loader, file: &Path, registry: &mut Registry) -> anyhow::Result<()> {
    #[allow(unsafe_code, reason = "to run a library's code is what the user asked for")]
    // SAFETY: the user named the library, which vouches for its code as for any program that they start.
    let added = unsafe { loader.load(file, registry) }?;
    tracing::debug!(file = %file.display(), added, "loaded a plugin library");
    Ok(())
}

/// A library is tried by this program, as a child, before this process loads it.
pub(super) fn loader() -> Loader {
    let args = ["plugins", "probe"].map(OsString::from).to_vec();
    let probe = env::current_exe().ok().map(|program| Probe { program, args, passed: passed_folder() });
    Loader { probe }
}

fn passed_folder() -> Option<PathBuf> {
    let home = || env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let cache = env::var_os("CIRCUITLAB_CACHE").map(PathBuf::from).or_else(|| Some(home()?.join("circuitlab")))?;
    cache.is_absolute().then(|| cache.join("plugins-that-load"))
}
