//! Plugin libraries: where they are found, and which of them a run was made with.

use std::env::split_paths;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::plugin::{Kind, loader};
use circuitlab_core::{Error as CoreError, Registry};
use serde::{Deserialize, Serialize};

use crate::Result;

/// The variable that lists libraries and folders of libraries, separated as `PATH` is.
pub const SEARCH_PATH: &str = "CIRCUITLAB_PLUGIN_PATH";

/// The section `[plugins]` of a config.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginsConfig {
    /// Plugin libraries, or folders of them, that are loaded before the config is read further. Default: none.
    pub paths: Vec<PathBuf>,
}

/// The libraries that a path stands for: itself, or all plugins in a folder. What else lies in a folder, and plugins that were
/// built otherwise than this program, are left out with a warning.
///
/// # Errors
/// A path that cannot be read.
pub fn libraries_in(path: &Path) -> Result<Vec<PathBuf>> {
    let usable = |file: &PathBuf| match loader::inspect(file).and_then(|library| library.check()) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!("left out: {error}");
            false
        }
    };
    let files = files_in(path)?;
    // One that was named itself is refused, not left out.
    Ok(if path.is_dir() { files.into_iter().filter(usable).collect() } else { files })
}

/// The files that a path stands for: itself, or all in a folder that are called as shared libraries are, by name.
///
/// # Errors
/// A path that cannot be read.
pub fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut files = entries.map_err(CoreError::io("read", path))?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == std::env::consts::DLL_EXTENSION));
    files.sort();
    Ok(files)
}

/// The libraries of a list such as [`SEARCH_PATH`]'s. Places that are not there are left out with a warning, as `PATH`'s are.
///
/// # Errors
/// A place that cannot be read.
pub fn search(list: &OsStr) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for place in split_paths(list).filter(|place| !place.as_os_str().is_empty()) {
        if place.exists() {
            found.extend(libraries_in(&place)?);
        } else {
            tracing::warn!("`{}` of {SEARCH_PATH} is not there", place.display());
        }
    }
    Ok(found)
}

/// The libraries that plugins came with, without those that are linked in.
pub(crate) fn libraries_of<'a>(registry: &Registry, plugins: impl IntoIterator<Item = (Kind, &'a str)>) -> PluginsConfig {
    let libraries = plugins.into_iter().filter_map(|(kind, name)| registry.library_of(kind, name));
    let mut paths: Vec<PathBuf> = libraries.map(Path::to_path_buf).collect();
    paths.sort();
    paths.dedup();
    PluginsConfig { paths }
}
