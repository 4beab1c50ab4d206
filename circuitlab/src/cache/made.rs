//! Rows that a model makes as they are needed.
//!
//! They come in the chunks that a cache of the same model, text and settings would have, so that order, shuffling and resumption are a
//! cache's. A window of chunks is the shuffling buffer.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use circuitlab_core::{BlockShape, LanguageModel, Registry};

use super::config::{CacheConfig, JobShare};
use super::gather;
use super::identity::Identity;
use super::open::Normalisation;
use super::plan::{CacheJob, Plan};
use super::statistics::Statistics;
use crate::progress::Progress;
use crate::text::sha256;
use crate::{Error, Result};

/// A model, a text, and how its contexts become rows.
#[derive(Debug)]
pub struct Made {
    plan: Plan,
    /// One pass runs at a time: a pass has all threads of the machine.
    model: Mutex<Box<dyn LanguageModel>>,
    chunk_rows: Vec<u64>,
    normalisation: Normalisation,
    /// Of whoever opened it: sums depend on their number, and rows are made on another thread.
    threads: i32,
}

impl Made {
    /// Reads and tokenises the text, and makes a first chunk to learn the rows' scale from. The codec of the settings is not used.
    ///
    /// # Errors
    /// What a cache of these settings refuses, and rows left out by their norm, since how many they are is known only when all are made.
    pub fn new(
        registry: &Registry,
        model: Box<dyn LanguageModel>,
        tokenizer: &Path,
        text: &[PathBuf],
        config: &CacheConfig,
        progress: &dyn Progress,
    ) -> Result<Self> {
        if config.max_norm.is_some() {
            let message = "rows are made as they are needed, and how many it leaves out is known only when all are made; write a cache";
            return Err(circuitlab_core::Error::config("activations, key `settings.max_norm`", message).into());
        }
        let job = CacheJob { registry, model: &*model, tokenizer, text, out: Path::new(""), config, share: JobShare::WHOLE, resume: false };
        let plan = Plan::new(&job, progress)?;
        let identity = plan.identity();
        // Contexts are in random order, so the first chunk is a sample of all.
        let blocks = gather::collect(&plan, &*model, 0)?.into_blocks(&plan)?;
        let statistics: Vec<Statistics> = blocks.iter().map(|block| Statistics::of_rows(block, identity.d_model)).collect();
        let (inputs, targets): (Vec<_>, Vec<_>) = statistics.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
        let normalisation = Normalisation::of(identity.d_model, &inputs, &targets);
        let chunk_rows = (0..plan.chunks()).map(|chunk| plan.chunk_rows(chunk)).collect();
        Ok(Self { plan, model: Mutex::new(model), chunk_rows, normalisation, threads: tch::get_num_threads() })
    }

    /// What the rows are and how they come about.
    pub fn identity(&self) -> &Identity {
        self.plan.identity()
    }

    /// Rows of an epoch.
    pub fn rows(&self) -> u64 {
        self.plan.rows()
    }

    /// Rows of each chunk.
    pub fn chunk_rows(&self) -> &[u64] {
        &self.chunk_rows
    }

    /// The factors of each layer, by the rows of the first chunk.
    pub fn normalisation(&self) -> &Normalisation {
        &self.normalisation
    }

    /// About how much memory a window of so many chunks takes.
    pub fn window_bytes(&self, chunks: usize) -> u64 {
        let identity = self.identity();
        let largest = self.chunk_rows.iter().max().copied().unwrap_or(0);
        chunks.min(self.chunk_rows.len()) as u64 * largest * (identity.layers * identity.d_model * 2 * 4) as u64
    }

    /// Tells these rows from others.
    pub fn digest(&self) -> String {
        sha256(self.identity().comparable().to_string().as_bytes())
    }

    /// Makes a chunk: inputs and outputs of layer 0, of layer 1, ..., `[rows * d_model]` each.
    pub(super) fn chunk(&self, number: usize) -> Result<(BlockShape, Vec<Vec<f32>>)> {
        if number >= self.chunk_rows.len() {
            return Err(Error::Invalid(format!("there is no chunk {number} of rows, there are {}", self.chunk_rows.len())));
        }
        // A panic in a pass was turned into an error; the model has no state that it could have left half changed.
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        tch::set_num_threads(self.threads);
        let rows = gather::collect(&self.plan, &**model, number)?;
        Ok((rows.shape, rows.into_blocks(&self.plan)?))
    }
}
