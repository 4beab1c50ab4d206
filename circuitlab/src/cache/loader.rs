//! Reads batches ahead of the trainer.
//!
//! One thread reads windows, a second one puts batches together, both with the help of all cores. The first hands a window over only
//! when the second asks for it, so that no more than two windows are in memory; of batches, two wait. A batch that the trainer gives back
//! is filled again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use circuitlab_core::error::catch_panic;
use circuitlab_core::{Axis, Batch};
use circuitlab_kernels::slices::numbers_mut;
use tch::Device;

use super::memory::Memory;
use super::open::{Cache, Normalisation};
use super::pool::Pool;
use super::rows::Rows;
use super::sampler::{Sampler, SamplerState};
use super::window::{LoadedWindow, Scales};
use crate::{Error, Result};

/// Batches that wait for the trainer.
const READY_BATCHES: usize = 2;

/// How batches are made.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Rows of a batch, over all ranks.
    pub batch_rows: usize,
    /// Chunks that are shuffled together. Default of the engine: 8.
    pub window_chunks: usize,
    /// What rows are multiplied by.
    pub normalisation: Normalisation,
    /// Which ranks share a batch; each gets its contiguous share of the rows.
    pub share: Axis,
    /// Which ranks have the same share and read it in parts; each gets its contiguous part of the share.
    pub part: Axis,
    /// A GPU that batches go to: their memory is pinned for it, which makes the copy faster.
    pub pinned: Option<Device>,
}

impl LoaderOptions {
    /// Batches of so many rows for one rank, in normalised units, over windows of 8 chunks.
    pub fn new(cache: &Cache, batch_rows: usize) -> Self {
        Self { batch_rows, window_chunks: 8, normalisation: cache.normalisation(), share: Axis::SINGLE, part: Axis::SINGLE, pinned: None }
    }

    /// The same for one rank of several.
    #[must_use]
    pub fn with_share(self, share: Axis) -> Self {
        Self { share, ..self }
    }

    /// The same for a part of the rank's share.
    #[must_use]
    pub fn with_part(self, part: Axis) -> Self {
        Self { part, ..self }
    }

    /// The rows of a batch that are read.
    fn rows(&self) -> Range<usize> {
        let share = self.share.share(self.batch_rows);
        let part = self.part.share(share.len());
        share.start + part.start..share.start + part.end
    }
}

/// A batch, and where the sequence of rows stands after it.
#[derive(Debug)]
pub struct LoadedBatch {
    /// The rows that are read: `[rows, layer, d_model]`, 32-bit floats on the CPU.
    pub batch: Batch,
    /// What a checkpoint after this batch keeps.
    pub state: SamplerState,
}

/// Batches without end, read ahead by threads of its own, which end when it is dropped.
#[derive(Debug)]
pub struct Loader {
    ready: Option<Receiver<Result<LoadedBatch>>>,
    used: Sender<Batch>,
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Begins to read.
    ///
    /// # Errors
    /// Batches without rows for some rank, factors of another number of layers, and a cache without rows.
    pub fn start(rows: impl Into<Rows>, state: SamplerState, options: &LoaderOptions) -> Result<Self> {
        let source = rows.into();
        let LoaderOptions { batch_rows, window_chunks, normalisation, share, part, pinned } = options;
        let layers = source.identity().layers;
        if (normalisation.input_scales.len(), normalisation.target_scales.len()) != (layers, layers) {
            return Err(Error::Invalid(format!("the normalisation is not of the cache's {layers} layers")));
        }
        if *batch_rows < share.size.max(1) || share.rank >= share.size {
            return Err(Error::Invalid(format!("a batch of {batch_rows} rows has none for rank {} of {}", share.rank, share.size)));
        }
        let rows = options.rows();
        if rows.is_empty() || part.rank >= part.size {
            let share = share.share(*batch_rows).len();
            return Err(Error::Invalid(format!("a share of {share} rows has none for part {} of {}", part.rank, part.size)));
        }
        let sampler = Sampler::new(source.chunk_rows(), *window_chunks)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let (window_sender, windows) = sync_channel(0);
        let (batch_sender, ready) = sync_channel(READY_BATCHES);
        let (used, returned) = channel();
        let shape = [rows.len() as i64, layers as i64, source.identity().d_model as i64];
        let assembler = Assembler {
            place: Some(state.drawn_rows % sampler.rows()),
            current: None,
            state,
            batch_rows: *batch_rows as u64,
            share: rows.start as u64..rows.end as u64,
            scales: Scales::new(normalisation),
            row_length: layers * source.identity().d_model,
            memory: Memory::new(shape, *pinned, returned),
        };
        let flag = Arc::clone(&stopped);
        let read = thread::Builder::new().name("cache-read".to_owned()).spawn(move || {
            let done = catch_panic("cache loader", || read_windows(&source, &sampler, state, &flag, &window_sender));
            done.unwrap_or_else(|error| drop(window_sender.send(Err(error))));
        });
        let assemble = thread::Builder::new().name("cache-batch".to_owned()).spawn(move || {
            let done = catch_panic("cache loader", || assembler.run(&windows, &batch_sender));
            done.unwrap_or_else(|error| drop(batch_sender.send(Err(error))));
        });
        let mut loader = Self { ready: Some(ready), used, stopped, threads: Vec::new() };
        for thread in [read, assemble] {
            loader.threads.push(thread.map_err(|error| Error::Invalid(format!("cannot start a thread: {error}")))?);
        }
        Ok(loader)
    }

    /// The next batch; waits for it.
    ///
    /// # Errors
    /// Damaged chunks. After an error there are no further batches.
    #[allow(clippy::should_implement_trait, reason = "it never ends, and an error ends it")]
    pub fn next(&mut self) -> Result<LoadedBatch> {
        let next = self.ready.as_ref().and_then(|ready| ready.recv().ok());
        next.unwrap_or_else(|| Err(Error::Invalid("the cache loader has stopped after an error".to_owned())))
    }

    /// Lets the memory of a batch be filled again. Nothing may still refer to it, be it a view of a tensor or a copy to a GPU that is
    /// under way. A batch that is not given back is simply dropped.
    pub fn give_back(&self, batch: Batch) {
        // After an error there is nobody to take it.
        let _ = self.used.send(batch);
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Without a receiver the threads' next send fails, and they end.
        self.ready = None;
        for thread in self.threads.drain(..) {
            // Panics were turned into errors inside.
            let _ = thread.join();
        }
    }
}

/// Sends windows until nobody takes them.
fn read_windows(
    source: &Rows,
    sampler: &Sampler,
    state: SamplerState,
    stopped: &AtomicBool,
    windows: &SyncSender<Result<LoadedWindow>>,
) -> Result<()> {
    let pool = Arc::new(Pool::default());
    for window in sampler.windows_from(state) {
        let order = sampler.order(state.seed, &window);
        let Some(read) = LoadedWindow::read(source, window, order, &pool, || stopped.load(Ordering::Relaxed))? else {
            break;
        };
        if windows.send(Ok(read)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Puts batches together.
struct Assembler {
    state: SamplerState,
    /// The place of the first row in its epoch; afterwards windows are taken from their begin.
    place: Option<u64>,
    /// The window that is being drawn from, and the place of its next row.
    current: Option<(LoadedWindow, u64)>,
    batch_rows: u64,
    /// This rank's rows of a batch.
    share: Range<u64>,
    scales: Scales,
    /// Numbers of one side of a row.
    row_length: usize,
    memory: Memory,
}

impl Assembler {
    fn run(mut self, windows: &Receiver<Result<LoadedWindow>>, batches: &SyncSender<Result<LoadedBatch>>) -> Result<()> {
        loop {
            let mut batch = self.memory.take()?;
            if !self.fill(windows, numbers_mut(&mut batch.inputs)?, numbers_mut(&mut batch.targets)?)? {
                return Ok(());
            }
            self.state.drawn_rows += self.batch_rows;
            if batches.send(Ok(LoadedBatch { batch, state: self.state })).is_err() {
                return Ok(());
            }
        }
    }

    /// Fills one batch, and gives whether there were windows enough.
    fn fill(&mut self, windows: &Receiver<Result<LoadedWindow>>, inputs: &mut [f32], targets: &mut [f32]) -> Result<bool> {
        let mut filled = 0;
        while filled < self.batch_rows {
            let Some((window, at)) = self.current.take() else {
                let Ok(window) = windows.recv() else { return Ok(false) };
                let window = window?;
                let at = self.place.take().map_or(0, |place| place.saturating_sub(window.window.first_row));
                self.current = Some((window, at));
                continue;
            };
            let taken = (window.window.rows - at).min(self.batch_rows - filled);
            // The rows of this stretch of the batch that are this rank's.
            let begin = self.share.start.clamp(filled, filled + taken);
            let end = self.share.end.clamp(filled, filled + taken);
            if begin < end {
                let number = |row: u64| (row - self.share.start) as usize * self.row_length;
                let rows = number(begin)..number(end);
                let places = at + begin - filled..at + end - filled;
                window.gather(places, &self.scales, &mut inputs[rows.clone()], &mut targets[rows])?;
            }
            filled += taken;
            self.current = (at + taken < window.window.rows).then_some((window, at + taken));
        }
        Ok(true)
    }
}
