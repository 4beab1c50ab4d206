//! What a cache would cost, from a measured sample.

use std::time::Instant;

use serde::Serialize;

use super::gather;
use super::plan::{CacheJob, Plan};
use crate::progress::Progress;
use crate::{Error, Result};

/// Batches that are measured, after one that is not: the first is slower.
const SAMPLE_BATCHES: usize = 8;

/// What a cache would cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// The job that was planned, from 1.
    pub job: usize,
    /// How many jobs there are.
    pub jobs: usize,
    /// This job.
    pub this_job: Cost,
    /// All jobs together. Where there are several, they are taken to be like this one.
    pub all_jobs: Cost,
    /// Documents of this job's text that would be left out because they cannot be read.
    pub skipped_documents: u64,
    /// Contexts that were measured.
    pub sample_contexts: usize,
    /// Rows that they gave.
    pub sample_rows: usize,
    /// Rows cached in a second.
    pub rows_per_second: f64,
}

/// What a job, or all jobs, would cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Rows; a few fewer where `max_norm` leaves outliers out.
    pub rows: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// What the rows would take as 32-bit floats.
    pub raw_bytes: u64,
    /// Seconds of reading and tokenising.
    pub tokenising_seconds: f64,
    /// Seconds of running the model and encoding what it gives.
    pub caching_seconds: f64,
    /// Both, in hours.
    pub hours: f64,
}

/// Plans a job, which reads and tokenises its text, and measures the model and the codec on a sample of it. Writes nothing but temporary
/// files.
///
/// # Errors
/// As [`build`](super::build), but for what has to do with the cache's folder, and a job without a row.
pub fn estimate(job: &CacheJob<'_>, progress: &dyn Progress) -> Result<Estimate> {
    let started = Instant::now();
    let plan = Plan::new(job, progress)?;
    let tokenising_seconds = started.elapsed().as_secs_f64();
    if plan.rows() == 0 {
        let message = format!("no document fell to the job {}, so there is nothing to measure; try another", job.share);
        return Err(Error::Invalid(message));
    }
    let batch = job.config.batch_contexts;
    let first = plan.sample(0..batch).collect();
    measure(&plan, job, first)?;
    // A text of one batch is measured again.
    let (from, to) = if plan.contexts() > batch { (batch, batch * (SAMPLE_BATCHES + 1)) } else { (0, batch) };
    progress.begin("measuring", 0, "batches");
    let (mut rows, mut bytes, mut contexts) = (0, 0, 0);
    let started = Instant::now();
    for at in (from..to.min(plan.contexts())).step_by(batch) {
        let sample: Vec<_> = plan.sample(at..(at + batch).min(to)).collect();
        contexts += sample.len();
        let (new_rows, new_bytes) = measure(&plan, job, sample)?;
        rows += new_rows;
        bytes += new_bytes;
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.end();
    if rows == 0 {
        return Err(Error::Invalid("the sample has no row to keep: all its tokens are special".to_owned()));
    }
    let share = plan.rows() as f64 / rows as f64;
    let this_job = Cost {
        rows: plan.rows(),
        bytes: (bytes as f64 * share) as u64,
        raw_bytes: plan.raw_bytes(plan.rows()),
        tokenising_seconds,
        caching_seconds: seconds * share,
        hours: (tokenising_seconds + seconds * share) / 3600.0,
    };
    let jobs = job.share.jobs();
    Ok(Estimate {
        job: job.share.job(),
        jobs,
        this_job,
        all_jobs: this_job.times(jobs),
        skipped_documents: plan.skipped(),
        sample_contexts: contexts,
        sample_rows: rows,
        rows_per_second: rows as f64 / seconds.max(f64::MIN_POSITIVE),
    })
}

impl Cost {
    fn times(self, jobs: usize) -> Self {
        let factor = jobs as f64;
        Self {
            rows: self.rows * jobs as u64,
            bytes: self.bytes * jobs as u64,
            raw_bytes: self.raw_bytes * jobs as u64,
            tokenising_seconds: self.tokenising_seconds * factor,
            caching_seconds: self.caching_seconds * factor,
            hours: self.hours * factor,
        }
    }
}

/// Rows and encoded bytes of some contexts.
fn measure(plan: &Plan, job: &CacheJob<'_>, contexts: Vec<crate::text::Context<'_>>) -> Result<(usize, u64)> {
    let rows = gather::collect_contexts(plan, job.model, contexts, 0)?;
    let blocks: u64 = rows.encode(plan)?.iter().map(|(block, _)| block.len() as u64).sum();
    // The index has three 32-bit numbers for each row.
    let planned = rows.shape.rows + rows.masked as usize;
    Ok((planned, blocks + 12 * rows.shape.rows as u64))
}
