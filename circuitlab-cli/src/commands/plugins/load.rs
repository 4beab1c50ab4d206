//! Plugin libraries that a command line, the environment or a config names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use circuitlab::plugins::{SEARCH_PATH, libraries_in, search};
use circuitlab_core::Registry;
use circuitlab_core::plugin::loader::{Loader, Probe};

use crate::args::{Cli, Command, PluginsCommand};
use crate::commands::{cache, train};

/// Loads every library that this run names into the registry.
pub(crate) fn load(cli: &Cli, registry: &mut Registry) -> anyhow::Result<()> {
    if let Command::Plugins(PluginsCommand::Check(_) | PluginsCommand::New(_) | PluginsCommand::Probe(_)) = &cli.command {
        // They must work where a library does not.
        return Ok(());
    }
    let mut files = Vec::new();
    for path in cli.plugin.iter().chain(&configured(&cli.command)?) {
        files.extend(libraries_in(path)?);
    }
    files.extend(search(&env::var_os(SEARCH_PATH).unwrap_or_default())?);
    let loader = loader();
    for file in files {
        load_one(&loader, &file, registry)?;
    }
    Ok(())
}

/// Loads a library into a registry of its own, without a trial, and forgets it.
pub(super) fn load_here(file: &Path) -> anyhow::Result<()> {
    load_one(&Loader::default(), file, &mut Registry::default())
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

/// The libraries that a command's config names.
fn configured(command: &Command) -> anyhow::Result<Vec<PathBuf>> {
    let (paths, recorded) = match command {
        Command::Cache(args) => (cache::plugin_paths(args)?, false),
        Command::Train(args) => train::plugin_paths(args)?,
        _ => return Ok(Vec::new()),
    };
    // A run's own record may be older than the library's place; if the plugin is not found elsewhere, its absence is told then.
    Ok(paths.into_iter().filter(|path| !recorded || there(path)).collect())
}

fn there(path: &Path) -> bool {
    let found = fs::metadata(path).is_ok();
    if !found {
        tracing::warn!("the run was made with the plugin `{}`, which is not there any more", path.display());
    }
    found
}
