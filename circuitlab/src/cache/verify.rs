//! Looks after a cache: how far it is, and whether its files are as they were written.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::chunk::ChunkFile;
use super::config::JobShare;
use super::duplicates::duplicates;
use super::identity::Identity;
use super::manifest::{self, ChunkEntry, Manifest};
use super::place::Place;
use crate::progress::Progress;
use crate::{Error, Result};

/// Something of a cache that is not as it was written.
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
/// A folder that is no cache, damaged manifests, and parts of different caches.
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

/// Reads every file of every part and compares it with its checksum; then looks for parts of another cache, and for rows that are there
/// twice. Gives all that is wrong. Deleting damaged chunks and running the job again with `--resume` makes them anew.
///
/// # Errors
/// A folder that is no cache.
pub fn verify(folder: &Path, progress: &dyn Progress) -> Result<Vec<Damage>> {
    let mut damages = Vec::new();
    let mut whole = Vec::new();
    for (share, part) in manifest::parts(&Place::new(folder)?)? {
        match manifest_of(share, &part) {
            Ok(manifest) => whole.extend(manifest.map(|manifest| (part, manifest))),
            Err(what) => damages.push(Damage { file: Manifest::path(&part), what }),
        }
    }
    strangers(&mut whole, &mut damages);
    progress.begin("verifying", whole.iter().map(|(_, manifest)| manifest.bytes()).sum(), "bytes");
    let mut done = 0;
    let mut sound = Vec::new();
    for (part, manifest) in &whole {
        for entry in &manifest.chunks {
            match damage(part, entry, &manifest.identity) {
                Some(what) => damages.push(Damage { file: part.path().join(&entry.file), what }),
                None => sound.push((part, entry)),
            }
            done += entry.bytes;
            progress.at(done, "");
        }
    }
    if let Some((_, manifest)) = whole.first() {
        damages.extend(duplicates(&sound, &manifest.identity).into_iter().map(|twice| {
            let [first, second] = twice.files;
            let what = format!("holds document {}, position {}, which `{}` holds too", twice.document, twice.position, first.display());
            Damage { file: second, what }
        }));
    }
    progress.end();
    Ok(damages)
}

/// A part's manifest; nothing where its job has not got so far, and what is wrong with one that is damaged.
fn manifest_of(share: JobShare, part: &Place) -> Result<Option<Manifest>, String> {
    if !Manifest::is_in(part).map_err(|error| told(&error))? {
        let files = part.entries().map_err(|error| told(&error))?.files;
        let lost = files.keys().any(|name| name == &manifest::chunk_file(0));
        return if lost { Err("is missing, though there are chunks".to_owned()) } else { Ok(None) };
    }
    let (manifest, _) = Manifest::load(part).map_err(|error| told(&error))?;
    if (manifest.job, manifest.identity.jobs) != (share.job(), share.jobs()) {
        return Err(format!("is of part {} of {}, which is not what its folder is called", manifest.job, manifest.identity.jobs));
    }
    Ok(Some(manifest))
}

/// Takes out the parts that are of another cache than most are.
fn strangers(parts: &mut Vec<(Place, Manifest)>, damages: &mut Vec<Damage>) {
    let same = |a: &Manifest, b: &Manifest| a.identity.comparable() == b.identity.comparable();
    let friends = |of: &Manifest| parts.iter().filter(|(_, other)| same(of, other)).count();
    // Of equally many, the first.
    let counts: Vec<usize> = parts.iter().map(|(_, manifest)| friends(manifest)).collect();
    let most = counts.iter().copied().max().unwrap_or(0);
    let Some(of) = counts.iter().position(|count| *count == most).map(|place| parts[place].clone()) else { return };
    parts.retain(|(part, manifest)| {
        let what = format!("is of another cache than `{}`", of.0.path().display());
        let differs = manifest.identity.agree(&what, &of.1.identity).err();
        let stranger = differs.is_some();
        damages.extend(differs.map(|error| Damage { file: Manifest::path(part), what: error.to_string() }));
        !stranger
    });
}

/// An error without the path, which is told beside it.
fn told(error: &Error) -> String {
    match error {
        Error::Core(circuitlab_core::Error::Io { source, .. }) => format!("cannot be read: {source}"),
        Error::Core(circuitlab_core::Error::Format { message, .. }) => message.clone(),
        other => other.to_string(),
    }
}

fn damage(part: &Place, entry: &ChunkEntry, identity: &Identity) -> Option<String> {
    let digest = || {
        let file = part.open(&entry.file)?;
        if file.length() != entry.bytes {
            return Ok(Some(format!("has {} bytes, expected {}", file.length(), entry.bytes)));
        }
        if file.sha256()? != entry.sha256 {
            return Ok(Some("has a wrong checksum".to_owned()));
        }
        // The very file that the manifest means; what remains is whether the two fit each other.
        ChunkFile::open(part, entry, identity.layers, identity.d_model).map(|_| None)
    };
    digest().unwrap_or_else(|error: Error| Some(told(&error)))
}

fn manifests(folder: &Path) -> Result<Vec<(Place, Manifest)>> {
    let mut manifests: Vec<(Place, Manifest)> = Vec::new();
    for (share, part) in manifest::parts(&Place::new(folder)?)? {
        if Manifest::is_in(&part)? {
            let (manifest, _) = Manifest::load(&part)?;
            if (manifest.job, manifest.identity.jobs) != (share.job(), share.jobs()) {
                let message = format!("it is part {} of {}, not what its name says", manifest.job, manifest.identity.jobs);
                return Err(circuitlab_core::Error::format(part.path(), message).into());
            }
            if let Some((first, known)) = manifests.first() {
                let what = format!("part `{}` is of another cache than `{}`", part.path().display(), first.path().display());
                manifest.identity.agree(&what, &known.identity)?;
            }
            manifests.push((part, manifest));
        }
    }
    Ok(manifests)
}
