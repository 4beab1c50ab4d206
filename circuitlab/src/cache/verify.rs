//! Looks after a cache: how far it is, and whether its files are as they were written.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::identity::Identity;
use super::manifest::{self, ChunkEntry, Manifest};
use crate::progress::Progress;
use crate::text::sha256_file;
use crate::{Error, Result};

/// A chunk that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// How far a cache is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CacheStatus {
    /// What it holds and how it came about; of the first part that was begun.
    pub identity: Identity,
    /// The parts that were begun.
    pub parts: Vec<PartStatus>,
    /// The jobs that were not begun, from 1.
    pub missing_jobs: Vec<usize>,
    /// Rows so far.
    pub rows: u64,
    /// Rows that the parts which were begun will have.
    pub planned_rows: u64,
    /// Bytes of all chunks so far.
    pub bytes: u64,
    /// Whether it can be trained on.
    pub complete: bool,
}

/// How far a part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartStatus {
    /// Its job, from 1.
    pub job: usize,
    /// Chunks that are written.
    pub chunks: usize,
    /// Chunks that it will have.
    pub planned_chunks: usize,
    /// Rows of the written chunks.
    pub rows: u64,
    /// Rows that it will have, those left out so far excluded.
    pub planned_rows: u64,
    /// Rows that were left out because their norms stand out.
    pub masked_rows: u64,
    /// Bytes of the written chunks.
    pub bytes: u64,
}

/// How far a cache is. Parts may be missing or unfinished; no chunk is read.
///
/// # Errors
/// A folder that is no cache, and damaged manifests.
pub fn status(folder: &Path) -> Result<CacheStatus> {
    let manifests = manifests(folder)?;
    let Some((_, first)) = manifests.first() else {
        let message = "its parts have no manifest yet; run the job again with `--resume`";
        return Err(circuitlab_core::Error::format(folder, message).into());
    };
    let part = |manifest: &Manifest| PartStatus {
        job: manifest.job,
        chunks: manifest.chunks.len(),
        planned_chunks: manifest.planned_chunks,
        rows: manifest.rows,
        planned_rows: manifest.planned_rows.saturating_sub(manifest.masked_rows),
        masked_rows: manifest.masked_rows,
        bytes: manifest.bytes(),
    };
    let parts: Vec<PartStatus> = manifests.iter().map(|(_, manifest)| part(manifest)).collect();
    let missing_jobs: Vec<usize> = (1..=first.identity.jobs).filter(|job| parts.iter().all(|part| part.job != *job)).collect();
    Ok(CacheStatus {
        identity: first.identity.clone(),
        rows: parts.iter().map(|part| part.rows).sum(),
        planned_rows: parts.iter().map(|part| part.planned_rows).sum(),
        bytes: parts.iter().map(|part| part.bytes).sum(),
        complete: missing_jobs.is_empty() && manifests.iter().all(|(_, manifest)| manifest.is_complete()),
        parts,
        missing_jobs,
    })
}

/// Reads every chunk of every part and compares it with its checksum. Gives all that are damaged; deleting those and running
/// the job again with `--resume` makes them anew.
///
/// # Errors
/// A folder that is no cache, and damaged manifests.
pub fn verify(folder: &Path, progress: &dyn Progress) -> Result<Vec<Damage>> {
    let manifests = manifests(folder)?;
    progress.begin("verifying", manifests.iter().map(|(_, manifest)| manifest.bytes()).sum(), "bytes");
    let mut done = 0;
    let mut damages = Vec::new();
    for (part, manifest) in &manifests {
        for entry in &manifest.chunks {
            let file = part.join(&entry.file);
            if let Some(what) = damage(&file, entry) {
                damages.push(Damage { file, what });
            }
            done += entry.bytes;
            progress.at(done, "");
        }
    }
    progress.end();
    Ok(damages)
}

fn damage(file: &Path, entry: &ChunkEntry) -> Option<String> {
    match fs::metadata(file) {
        Err(error) => return Some(format!("cannot be read: {error}")),
        Ok(metadata) if metadata.len() != entry.bytes => return Some(format!("has {} bytes, expected {}", metadata.len(), entry.bytes)),
        Ok(_) => {}
    }
    match sha256_file(file) {
        Err(Error::Core(circuitlab_core::Error::Io { source, .. })) => Some(format!("cannot be read: {source}")),
        Err(error) => Some(error.to_string()),
        Ok((sha256, _)) => (sha256 != entry.sha256).then(|| "has a wrong checksum".to_owned()),
    }
}

fn manifests(folder: &Path) -> Result<Vec<(PathBuf, Manifest)>> {
    let parts = manifest::parts(folder)?.into_iter().map(|(_, part)| part).filter(|part| Manifest::is_in(part));
    parts.map(|part| Manifest::read(&part).map(|manifest| (part, manifest))).collect()
}
