//! Writes a part of a cache, and goes on with one that was broken off.

use serde::Serialize;

use super::chunk;
use super::gather;
use super::manifest::{self, ChunkEntry, Manifest, chunk_file};
use super::place::{Condition, Lock, Place, Version};
use super::plan::{CacheJob, Plan};
use super::statistics::Statistics;
use crate::progress::Progress;
use crate::{Error, Result};

/// What a job did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Chunks of this part.
    pub chunks: usize,
    /// Chunks that this job wrote; the others were there.
    pub written_chunks: usize,
    /// Rows of this part.
    pub rows: u64,
    /// Bytes of its chunks.
    pub bytes: u64,
    /// What its rows would take as 32-bit floats.
    pub raw_bytes: u64,
    /// Rows that were left out because their norms stand out.
    pub masked_rows: u64,
    /// Documents that were left out because they could not be read, where that is allowed.
    pub skipped_documents: u64,
}

impl Summary {
    /// Whether the part was whole before.
    pub fn was_complete(&self) -> bool {
        self.written_chunks == 0
    }
}

/// Builds one job's part of a cache.
///
/// Every chunk depends on the settings, the text, the model, the number of threads and its own number only, so a job that was broken off and goes
/// on with `resume` writes the very bytes that it would have written in one go.
///
/// # Errors
/// A place that is taken, a part that was begun with another model, text or settings, whatever [`Plan::new`] refuses, values
/// that are not finite, and what the file system returns. The part can be gone on with after each of them.
pub fn build(job: &CacheJob<'_>, progress: &dyn Progress) -> Result<Summary> {
    let cache = Place::new(job.out)?;
    let place = cache.join(&job.share.folder());
    refuse_taken(&cache, &place, job.resume)?;
    let plan = Plan::new(job, progress)?;
    let mut part = Part::open(&cache, place, job, &plan)?;
    let missing = part.missing_chunks()?;
    let planned_rows = plan.rows();
    progress.begin("caching activations", planned_rows, "tokens");
    let mut done_rows = part.rows_but(&missing);
    progress.at(done_rows, "");
    for chunk in &missing {
        done_rows += part.add(&plan, job, *chunk)?;
        progress.at(done_rows, &format!("chunk {} of {}", chunk + 1, plan.chunks()));
    }
    progress.end();
    let Manifest { chunks, rows, .. } = &part.manifest;
    let (chunks, rows, bytes) = (chunks.len(), *rows, part.manifest.bytes());
    Ok(Summary {
        chunks,
        written_chunks: missing.len(),
        rows,
        bytes,
        raw_bytes: plan.raw_bytes(rows),
        masked_rows: part.manifest.masked_rows,
        skipped_documents: plan.skipped(),
    })
}

/// A fresh job wants a place that is free, or one where other jobs of the same cache are at work; no job wants a folder of
/// something else.
fn refuse_taken(cache: &Place, part: &Place, resume: bool) -> Result<()> {
    if !resume && part.exists()? {
        let hint = "go on with it by `--resume`, or choose another folder".to_owned();
        return Err(Error::Exists { path: part.path(), hint });
    }
    if !cache.is_free()? {
        manifest::parts(cache)?;
    }
    Ok(())
}

/// A part that is being written.
struct Part {
    place: Place,
    manifest: Manifest,
    /// Of the manifest in its place: where another process replaced it, this one must not.
    version: Version,
    /// Held until the job ends, so that no second job of this machine writes the same part.
    _lock: Lock,
}

impl Part {
    fn open(cache: &Place, place: Place, job: &CacheJob<'_>, plan: &Plan) -> Result<Self> {
        agree_with_others(cache, &place, plan)?;
        let lock = place.begin()?;
        let (manifest, version) = if Manifest::is_in(&place)? {
            let (there, version) = Manifest::load(&place)?;
            plan.identity().agree(&format!("cache `{}` was begun differently", place.path().display()), &there.identity)?;
            let what = |field: &str| format!("part `{}` was planned differently, `{field}`", place.path().display());
            if there.planned_rows != plan.rows() {
                return Err(Error::mismatch(what("planned_rows"), there.planned_rows, plan.rows()));
            }
            if there.planned_chunks != plan.chunks() {
                return Err(Error::mismatch(what("planned_chunks"), there.planned_chunks, plan.chunks()));
            }
            (there, version)
        } else {
            let fresh = Manifest::new(plan.identity().clone(), job.share, plan.chunks(), plan.rows());
            let version = fresh.write(&place, Condition::New)?;
            (fresh, version)
        };
        Ok(Self { place, manifest, version, _lock: lock })
    }

    /// Chunks that are not in the manifest, and those whose files are gone or cut.
    fn missing_chunks(&self) -> Result<Vec<usize>> {
        let files = self.place.entries()?.files;
        let there = |entry: &ChunkEntry| files.get(&entry.file) == Some(&entry.bytes);
        Ok((0..self.manifest.planned_chunks).filter(|chunk| !self.manifest.chunks.get(*chunk).is_some_and(there)).collect())
    }

    fn rows_but(&self, missing: &[usize]) -> u64 {
        self.manifest
            .chunks
            .iter()
            .enumerate()
            .filter(|(chunk, _)| missing.binary_search(chunk).is_err())
            .map(|(_, entry)| entry.rows)
            .sum()
    }

    /// Writes one chunk, and the manifest after it. Gives the chunk's rows.
    fn add(&mut self, plan: &Plan, job: &CacheJob<'_>, chunk: usize) -> Result<u64> {
        let rows = gather::collect(plan, job.model, chunk)?;
        let (blocks, statistics): (Vec<Vec<u8>>, Vec<Statistics>) = rows.encode(plan)?.into_iter().unzip();
        let entry = chunk::write(&self.place, chunk_file(chunk), rows.shape, &blocks, &rows.index)?;
        let count = entry.rows;
        if let Some(there) = self.manifest.chunks.get_mut(chunk) {
            // Its rows are in the statistics already.
            *there = entry;
        } else {
            self.manifest.chunks.push(entry);
            self.manifest.rows += count;
            self.manifest.masked_rows += rows.masked;
            let sides = self.manifest.inputs.iter_mut().zip(&mut self.manifest.targets);
            for ((input, target), new) in sides.zip(statistics.chunks_exact(2)) {
                input.merge(&new[0]);
                target.merge(&new[1]);
            }
        }
        self.version = self.manifest.write(&self.place, Condition::Replaces(&self.version))?;
        Ok(count)
    }
}

/// Compares with the parts that other jobs have begun.
fn agree_with_others(cache: &Place, own: &Place, plan: &Plan) -> Result<()> {
    let parts = if cache.is_free()? { Vec::new() } else { manifest::parts(cache)? };
    for (share, place) in parts.iter().filter(|(_, place)| place.path() != own.path()) {
        if share.jobs() != plan.share().jobs() {
            let what = format!("cache `{}` was begun by another number of jobs", cache.path().display());
            return Err(Error::mismatch(what, share.jobs(), plan.share().jobs()));
        }
        if Manifest::is_in(place)? {
            let what = format!("another job began `{}` differently", place.path().display());
            plan.identity().agree(&what, &Manifest::load(place)?.0.identity)?;
        }
    }
    Ok(())
}
