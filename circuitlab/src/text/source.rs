//! Which files, and who reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_core::plugin::Kind;
use circuitlab_core::{Documents, Registry, Spec, TextSource};
use serde::{Deserialize, Serialize};

use super::digest::sha256_file;
use crate::{Error, Result};

/// A file of text and the source that reads it.
#[derive(Debug, Clone)]
pub struct SourceFile {
    path: PathBuf,
    spec: Spec,
    source: Arc<dyn TextSource>,
}

/// What a manifest keeps of a file of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    /// Where it was. Not compared: the digest is.
    pub path: String,
    /// Who read it, with all settings.
    pub source: Spec,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl SourceFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its documents, in the file's order.
    ///
    /// # Errors
    /// A file that cannot be read or is no text of its kind.
    pub fn documents(&self) -> Result<Documents> {
        Ok(self.source.documents(&self.path)?)
    }

    /// Its digest and who reads it.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn record(&self) -> Result<SourceRecord> {
        let (sha256, bytes) = sha256_file(&self.path)?;
        Ok(SourceRecord { path: self.path.display().to_string(), source: self.spec.clone(), bytes, sha256 })
    }
}

/// Finds the files that paths name: a file stands for itself, a folder for its files of known kinds, by name.
///
/// `specs` holds the sources whose settings differ from the defaults.
///
/// # Errors
/// No path at all, paths that are not there, extensions that no source reads, folders without text, and refused settings.
pub fn resolve(registry: &Registry, specs: &[Spec], paths: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let readers = Readers::build(registry, specs)?;
    if paths.is_empty() {
        return Err(Error::Invalid(format!("no text was given; expected files or folders of {}", readers.known())));
    }
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            fs::metadata(path).map_err(circuitlab_core::Error::io("read", path))?;
            files.push(readers.open(path)?);
            continue;
        }
        let before = files.len();
        let mut inside = fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
            .map_err(circuitlab_core::Error::io("read", path))?;
        inside.sort();
        files.extend(inside.iter().filter(|path| path.is_file()).filter_map(|path| readers.open(path).ok()));
        if files.len() == before {
            return Err(circuitlab_core::Error::format(path, format!("it holds no text; known kinds: {}", readers.known())).into());
        }
    }
    Ok(files)
}

/// Every registered source, ready to read.
struct Readers(Vec<(Spec, Arc<dyn TextSource>)>);

impl Readers {
    fn build(registry: &Registry, specs: &[Spec]) -> Result<Self> {
        let named = registry.names(Kind::TextSource).into_iter().filter(|name| specs.iter().all(|spec| spec.name != *name));
        let specs = specs.iter().cloned().chain(named.map(Spec::named));
        let readers = specs.map(|spec| {
            let source: Arc<dyn TextSource> = Arc::from(registry.build::<dyn TextSource>(&spec)?);
            Ok((registry.complete::<dyn TextSource>(&spec)?, source))
        });
        Ok(Self(readers.collect::<Result<_>>()?))
    }

    fn open(&self, path: &Path) -> Result<SourceFile> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let reader = self.0.iter().find(|(_, source)| source.extensions().contains(&extension));
        let (spec, source) = reader.ok_or_else(|| {
            circuitlab_core::Error::format(path, format!("no text source reads files of the kind `.{extension}`; known: {}", self.known()))
        })?;
        Ok(SourceFile { path: path.to_path_buf(), spec: spec.clone(), source: Arc::clone(source) })
    }

    fn known(&self) -> String {
        let mut known: Vec<String> = self.0.iter().flat_map(|(_, source)| source.extensions()).map(|kind| format!("`.{kind}`")).collect();
        known.sort();
        known.dedup();
        known.join(", ")
    }
}
