//! The training loop: one stream of rows, and every transcoder that is trained on it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use circuitlab_core::config::DeviceName;
use circuitlab_core::error::catch_panic;
use circuitlab_core::{Axis, Batch, ParallelismStrategy, Precision, Registry};

use super::agree::agree;
use super::config::{DataConfig, TrainConfig};
use super::fault;
use super::member::{Member, Plans, Stream};
use super::metrics::variance;
use super::pace::Pace;
use super::ranks;
use super::resume::{all_finished, continues, finished, folder, member_path, remove_run, resolve};
use super::schedule::Schedule;
use super::sent::Sent;
use super::sharing::{Sharing, Supply};
use super::source;
use super::state::{Parts, placement};
use super::stop;
use crate::cache::{Loader, LoaderOptions, SamplerState};
use crate::run::{Origin, RunFolder};
use crate::sink::{Record, names};
use crate::{Progress, Result, plugins};

/// What to train, and where.
#[derive(Debug)]
pub struct TrainRequest<'a> {
    /// Where plugins are looked up.
    pub registry: &'a Registry,
    /// The cache to train on; without one, the config's `activations` say what makes the rows.
    pub cache: Option<&'a Path>,
    /// The run folder.
    pub out: &'a Path,
    /// The config; when resuming, the run's own unless one is given, which must then be the same.
    pub config: Option<TrainConfig>,
    /// Whether to go on with a run that is there.
    pub resume: bool,
    /// Told of every step.
    pub progress: &'a dyn Progress,
    /// Set where the run is to stop: every rank then writes a checkpoint after the same step, the next one, although one rank alone was
    /// asked. A run that was asked before its first step takes that step, and one in its last step ends as usual.
    pub stop: Option<&'a AtomicBool>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct TrainSummary {
    /// What was trained: one transcoder, or each of the config's `[[clt]]` tables.
    pub clts: Vec<TrainedClt>,
    /// Seconds that this process trained for.
    pub seconds: f64,
    /// Seconds of these that it waited for rows.
    pub data_wait_seconds: f64,
    /// Whether an earlier process had finished the run, so that this one did nothing.
    pub was_finished: bool,
    /// The step after which the run was stopped, with a checkpoint; nothing where it was trained to its end.
    pub stopped_at: Option<u64>,
    /// Whether this process is the one rank of the run that writes to its folder, and should say what came of it.
    pub leads: bool,
}

/// A trained transcoder.
#[derive(Debug, Clone)]
pub struct TrainedClt {
    /// Its name, where the run trained several.
    pub name: Option<String>,
    /// Its folder; of a run that was stopped, where it will be.
    pub result: PathBuf,
    /// Steps taken.
    pub steps: u64,
    /// Rows trained on.
    pub rows: u64,
    /// The last record, where there is one.
    pub last: Option<Record>,
}

/// Trains a transcoder, or several on the same rows, and leaves each in its run folder's `final`.
///
/// Where the config has `[[clt]]` tables the run folder holds a folder for each, by its name, which is a run folder like any other: what
/// is in it is to the bit what a run of that transcoder alone would have left.
///
/// A run that is asked to stop ends with a checkpoint after its next step ([`TrainRequest::stop`]).
/// A run that is killed at any moment continues from its newest checkpoint; on CPUs the continued run is bit for bit the one that
/// was not interrupted, since the number of threads belongs to the config of a run.
///
/// # Errors
/// Configs out of range, schedules that never train, a run folder that is taken, damaged caches, full disks. A new run that fails
/// before its first step leaves nothing behind.
pub fn train(request: &TrainRequest<'_>) -> Result<TrainSummary> {
    let mut config = resolve(request)?;
    let continues = continues(request);
    if request.resume && !continues {
        tracing::warn!("there is no run in `{}`; this is a new one", request.out.display());
    }
    let strategy: Arc<dyn ParallelismStrategy> = Arc::from(request.registry.build::<dyn ParallelismStrategy>(&config.strategy)?);
    // All ranks have looked whether the run folder is there before one of them makes it.
    strategy.barrier()?;
    // Before anything is written.
    Sharing::in_parts(&config, strategy.mesh().data.size, strategy.mesh().feature.size)?;
    let asked = crate::device::resolve(config.compute.device)?;
    config.compute.device = DeviceName(strategy.device(asked)?);
    if continues && let Some(done) = all_finished(request, &config, &*strategy)? {
        return Ok(done);
    }
    crate::device::set_threads(config.compute.threads)?;
    let rows = source::open(request, &config)?;
    if !continues {
        let members = config.members()?;
        let named = members.iter().flat_map(|(_, member)| member.plugin_names());
        config.plugins = plugins::libraries_of(request.registry, named.chain(rows.plugin_names()));
    }
    let stream = Stream { registry: request.registry, normalisation: rows.normalisation(), rows };
    let prepared = prepare(request, &config, &stream, &strategy)?;
    agree(&*strategy, &config, prepared.iter().map(|member| member.origin.clone()).collect())?;
    let leads = ranks::leads(&*strategy);
    let mut stepped = continues;
    let outcome = tch::no_grad(|| {
        catch_panic("training", || {
            let trainer = Trainer::start(request, config, stream, (strategy, prepared), continues)?;
            trainer.run(&mut stepped)
        })
    });
    if outcome.is_err() && !stepped && leads {
        // The error is what the user should see; what is left of the folder they can remove themselves.
        let _ = remove_run(request.out);
    }
    outcome
}

/// A transcoder whose settings were found to work, before anything is written.
struct Prepared {
    name: Option<String>,
    config: TrainConfig,
    schedule: Schedule,
    parts: Parts,
    origin: Origin,
}

/// Builds every transcoder's parts and checks all that can be checked; the strategy is one for all of them.
fn prepare(
    request: &TrainRequest<'_>,
    config: &TrainConfig,
    stream: &Stream<'_>,
    strategy: &Arc<dyn ParallelismStrategy>,
) -> Result<Vec<Prepared>> {
    let prepared = |(name, config): (Option<String>, TrainConfig)| {
        let schedule = Schedule::new(&config, stream.rows.count())?;
        let parts = Parts::build(request.registry, &config, &stream.rows, strategy)?;
        let origin = origin(request.registry, stream, &config)?;
        Ok(Prepared { name, config, schedule, parts, origin })
    };
    config.members()?.into_iter().map(prepared).collect()
}

fn origin(registry: &Registry, stream: &Stream<'_>, config: &TrainConfig) -> Result<Origin> {
    let providers = registry.providers(config.plugin_names())?;
    Ok(Origin { cache: stream.rows.digest(), version: env!("CARGO_PKG_VERSION").to_owned(), providers })
}

struct Trainer<'a> {
    request: &'a TrainRequest<'a>,
    /// The run's own, with its `[[clt]]` tables.
    config: TrainConfig,
    stream: Stream<'a>,
    steps: u64,
    strategy: Arc<dyn ParallelismStrategy>,
    supply: Supply,
    members: Vec<Member>,
    /// Transcoders that an earlier process finished, and where they stand among all.
    done: Vec<Option<TrainedClt>>,
    /// Where several are trained, the folder of them all: held so that no second process works in it.
    _run: Option<RunFolder>,
}

impl<'a> Trainer<'a> {
    fn start(
        request: &'a TrainRequest<'a>,
        config: TrainConfig,
        stream: Stream<'a>,
        (strategy, prepared): (Arc<dyn ParallelismStrategy>, Vec<Prepared>),
        continues: bool,
    ) -> Result<Self> {
        let several = !config.clt.is_empty();
        let whole = several
            .then(|| folder(request, request.out, &config, &origin_of_all(request.registry, &stream, &config, &prepared)?, &*strategy));
        let mut whole = whole.transpose()?;
        if let Some(run) = &mut whole {
            let names: Vec<&str> = prepared.iter().filter_map(|member| member.name.as_deref()).collect();
            run.log(&format!("{} transcoders on one stream, each in its own folder: {}", names.len(), names.join(", ")))?;
        }
        let supply = Supply::new(&config, &strategy)?;
        let steps = prepared.first().map_or(0, |first| first.schedule.steps);
        let mut firsts: HashMap<usize, Batch> = HashMap::new();
        let (mut members, mut done) = (Vec::new(), Vec::new());
        for Prepared { name, config, schedule, parts, origin } in prepared {
            let path = member_path(request.out, name.as_deref());
            let finished = if continues { finished(name.as_deref(), &path, &*strategy)? } else { None };
            if finished.is_none() {
                let run = folder(request, &path, &config, &origin, &*strategy)?;
                let plans = Plans { name, config, schedule, parts, run, continues };
                members.push(Member::open(plans, |config| first_rows(&mut firsts, &stream, config), &stream)?);
            }
            done.push(finished);
        }
        Ok(Self { request, config, stream, steps, strategy, supply, members, done, _run: whole })
    }

    /// Trains to the end; `stepped` is set once there is a step that would be lost with the run folder.
    fn run(mut self, stepped: &mut bool) -> Result<TrainSummary> {
        let started = Instant::now();
        let batch_rows = self.config.data.batch_rows as u64;
        // Members may have been killed between one's checkpoint and another's: who is ahead waits for the others.
        let mut step = self.members.iter().map(Member::steps).min().unwrap_or(self.steps);
        let mut before = SamplerState { seed: self.config.seed, drawn_rows: 0 };
        before = self.members.iter().map(|member| member.sampler).min_by_key(|sampler| sampler.drawn_rows).unwrap_or(before);
        let mut loader = self.loader(before)?;
        let (mut pace, mut sent) = (Pace::new(step), Sent::new(&self.strategy));
        let progress = ranks::leads(&*self.strategy).then_some(self.request.progress);
        if let Some(progress) = progress {
            progress.begin("train", self.steps * batch_rows, "tokens");
            progress.at(step * batch_rows, "");
        }
        while step < self.steps {
            let loaded = pace.waiting(|| loader.next())?;
            sent.begin()?;
            let batch = pace.waiting(|| self.supply.whole(&loaded.batch))?;
            self.step(step, &batch, before, loaded.state)?;
            drop(batch);
            loader.give_back(loaded.batch);
            before = loaded.state;
            step += 1;
            *stepped = true;
            let stop = self.is_to_stop()? && step < self.steps;
            sent.end()?;
            let save = stop || self.is_checkpoint(step);
            if save || step.is_multiple_of(self.config.metrics.every_steps) || step == self.steps {
                let figures: Vec<_> = pace.lap(step, batch_rows).into_iter().chain(sent.lap()).collect();
                for member in self.at(step) {
                    member.record(&figures)?;
                }
                if let Some(progress) = progress {
                    progress.at(step * batch_rows, &self.note());
                }
            }
            if save {
                self.checkpoint(step)?;
            }
            if stop {
                break;
            }
        }
        if let Some(progress) = progress {
            progress.end();
        }
        let stopped_at = (step < self.steps).then_some(step);
        self.finish(stopped_at, started, pace.waited_s)
    }

    fn loader(&self, from: SamplerState) -> Result<Loader> {
        let options = self.supply.options(loader_options(&self.config, &self.stream));
        Loader::start(self.stream.rows.clone(), from, &options)
    }

    /// The members that have taken so many steps.
    fn at(&mut self, step: u64) -> impl Iterator<Item = &mut Member> {
        self.members.iter_mut().filter(move |member| member.steps() == step)
    }

    fn step(&mut self, step: u64, batch: &Batch, before: SamplerState, after: SamplerState) -> Result<()> {
        let Self { config, stream, strategy, members, .. } = self;
        let DataConfig { batch_rows, window_chunks, .. } = config.data;
        let variance = variance(&batch.targets, &**strategy, batch_rows)?;
        let origin = fault::Origin { rows: &stream.rows, window_chunks, before, batch_rows, share: strategy.mesh().data };
        let mut here = members.iter_mut().filter(|member| member.steps() == step);
        here.try_for_each(|member| member.step(batch, &variance, after, &origin))
    }

    fn is_checkpoint(&self, step: u64) -> bool {
        let every = self.config.checkpoint.every_steps.unwrap_or_else(|| self.steps.div_ceil(10));
        step.is_multiple_of(every) && step < self.steps
    }

    /// Whether any rank was asked to stop.
    fn is_to_stop(&self) -> Result<bool> {
        let asked = self.request.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
        stop::agreed(asked, &*self.strategy)
    }

    fn checkpoint(&mut self, step: u64) -> Result<()> {
        let Self { members, stream, .. } = self;
        members.iter_mut().filter(|member| member.steps() == step).try_for_each(|member| member.checkpoint(stream))
    }

    /// The figures that a progress bar has room for: those of the first transcoder.
    fn note(&self) -> String {
        let Some(member) = self.members.iter().find(|member| member.last.is_some()) else { return String::new() };
        let of = |name| member.last.as_ref().and_then(|record| record.get(name)).unwrap_or(f64::NAN);
        format!(
            "{}loss {:.2}  EV {:.3}  L0 {:.1}  dead {:.0}",
            member.name.as_ref().map_or_else(String::new, |name| format!("{name}: ")),
            of(names::LOSS_TOTAL),
            of(names::EXPLAINED_VARIANCE),
            of(names::L0),
            of(names::DEAD_FEATURES)
        )
    }

    fn finish(self, stopped_at: Option<u64>, started: Instant, data_wait_seconds: f64) -> Result<TrainSummary> {
        let (seconds, strategy) = (started.elapsed().as_secs_f64(), self.strategy);
        let end = |member: Member| match stopped_at {
            Some(_) => member.pause(),
            None => member.finish(&self.stream, seconds, data_wait_seconds),
        };
        let mut members = self.members.into_iter();
        let mut clts = Vec::with_capacity(self.done.len());
        for done in self.done {
            let mut trained = || members.next().map(end).transpose();
            clts.extend(match done {
                Some(done) => Some(done),
                None => trained()?,
            });
        }
        // Nobody ends while another may still need it.
        strategy.barrier()?;
        let leads = ranks::leads(&*strategy);
        Ok(TrainSummary { clts, seconds, data_wait_seconds, was_finished: false, stopped_at, leads })
    }
}

/// What a run of several was started on, with the plugins of all.
fn origin_of_all(registry: &Registry, stream: &Stream<'_>, config: &TrainConfig, prepared: &[Prepared]) -> Result<Origin> {
    let mut all = origin(registry, stream, config)?;
    for provider in prepared.iter().flat_map(|member| &member.origin.providers) {
        if !all.providers.contains(provider) {
            all.providers.push(provider.clone());
        }
    }
    Ok(all)
}

/// The first rows of the run, which biases are set from; read once for each number of them. They are trained on too.
fn first_rows(read: &mut HashMap<usize, Batch>, stream: &Stream<'_>, config: &TrainConfig) -> Result<Batch> {
    let rows = config.init.rows.min(usize::try_from(stream.rows.count()).unwrap_or(usize::MAX));
    let known = match read.entry(rows) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => {
            let state = SamplerState { seed: config.seed, drawn_rows: 0 };
            let options = LoaderOptions { batch_rows: rows, ..loader_options(config, stream) };
            let mut loader = Loader::start(stream.rows.clone(), state, &options)?;
            place.insert(to_device(&loader.next()?.batch, config))
        }
    };
    Ok(Batch { inputs: known.inputs.shallow_clone(), targets: known.targets.shallow_clone() })
}

fn loader_options(config: &TrainConfig, stream: &Stream<'_>) -> LoaderOptions {
    let DataConfig { batch_rows, window_chunks, .. } = config.data;
    let (_, device) = placement(config);
    let pinned = device.is_cuda().then_some(device);
    LoaderOptions {
        batch_rows,
        window_chunks,
        normalisation: stream.normalisation.clone(),
        share: Axis::SINGLE,
        part: Axis::SINGLE,
        pinned,
    }
}

/// A batch where and in the type that steps take it: of at least 32 bits.
fn to_device(batch: &Batch, config: &TrainConfig) -> Batch {
    let (kind, device) = placement(config);
    let placed = |tensor: &tch::Tensor| tensor.to_device(device).to_kind(Precision::Full.kind(kind));
    Batch { inputs: placed(&batch.inputs), targets: placed(&batch.targets) }
}
