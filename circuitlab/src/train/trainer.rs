//! The training loop.

use std::path::{Path, PathBuf};
use std::time::Instant;

use circuitlab_core::error::catch_panic;
use circuitlab_core::{Axis, Batch, Kind, MetricSink, ParallelismStrategy, Registry, SparsityActivation, StepContext, Transcoder, files};
use tch::Tensor;

use super::checkpoint::{self, SavedState, SavedTensors};
use super::config::{DataConfig, TrainConfig};
use super::metrics::{Interval, StepMetrics};
use super::optimiser::{clip_scale, global_norm};
use super::pace::Pace;
use super::schedule::Schedule;
use super::source;
use super::state::{Parts, TrainState, placement};
use crate::cache::{Loader, LoaderOptions, Normalisation, Rows, SamplerState, is_url};
use crate::run::{Origin, RunFolder};
use crate::saved::{self, Card, Provenance, SavedActivation};
use crate::sink::{Record, Sinks, jsonl, names};
use crate::{Error, Progress, Result, config, plugins};

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
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct TrainSummary {
    /// The trained CLT folder.
    pub result: PathBuf,
    /// Steps of the run.
    pub steps: u64,
    /// Rows trained on.
    pub rows: u64,
    /// The last record, where this process made one.
    pub last: Option<Record>,
    /// Seconds that this process trained for.
    pub seconds: f64,
    /// Seconds of these that it waited for rows.
    pub data_wait_seconds: f64,
    /// Whether an earlier process had finished the run, so that this one did nothing.
    pub was_finished: bool,
}

/// Trains a transcoder and leaves it in the run folder's `final`.
///
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
    if continues && request.out.join("final").exists() {
        return finished(request.out);
    }
    crate::device::set_threads(config.compute.threads)?;
    let rows = source::open(request, &config)?;
    if !continues {
        config.plugins = plugins::libraries_of(request.registry, config.plugin_names().chain(rows.plugin_names()));
    }
    let schedule = Schedule::new(&config, rows.count())?;
    let parts = Parts::build(request.registry, &config, &rows)?;
    let providers = request.registry.providers(config.plugin_names())?;
    let origin = Origin { cache: rows.digest(), version: env!("CARGO_PKG_VERSION").to_owned(), providers };
    let run = if continues { go_on(request, &origin)? } else { RunFolder::create(request.out, &config::to_toml(&config)?, &origin)? };
    let mut stepped = continues;
    let outcome = tch::no_grad(|| {
        catch_panic("training", || {
            let trainer = Trainer::start(request, config, rows, schedule, parts, run, continues)?;
            trainer.run(&mut stepped)
        })
    });
    if outcome.is_err() && !stepped {
        // The error is what the user should see; what is left of the folder they can remove themselves.
        let _ = remove_run(request.out);
    }
    outcome
}

/// Whether there is a run to go on with. One that was killed before it had a folder is begun.
fn continues(request: &TrainRequest<'_>) -> bool {
    request.resume && RunFolder::check_free(request.out).is_err()
}

fn go_on(request: &TrainRequest<'_>, origin: &Origin) -> Result<RunFolder> {
    let run = RunFolder::open(request.out)?;
    let known = Origin::read(request.out)?.cache;
    if known == origin.cache {
        return Ok(run);
    }
    let now = request.cache.map_or_else(|| "that of its own `activations`".to_owned(), |cache| format!("`{}`", cache.display()));
    let what = format!("run `{}` was started on another cache than {now}", request.out.display());
    Err(Error::mismatch(what, known, &origin.cache))
}

/// Empties a run folder, and removes it unless it is a link or a mount.
fn remove_run(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() { std::fs::remove_dir_all(&entry)? } else { std::fs::remove_file(&entry)? }
    }
    std::fs::remove_dir(path)
}

/// The summary of a run that has its result already. The process that made it may have been killed before it drew the plots.
fn finished(out: &Path) -> Result<TrainSummary> {
    Sinks::plot(out)?;
    let result = out.join("final");
    let last = jsonl::read(out)?.and_then(|mut records| records.pop());
    let (steps, rows) = saved::read_card(&result)?.circuitlab.map_or((0, 0), |known| (known.steps, known.rows));
    Ok(TrainSummary { result, steps, rows, last, seconds: 0.0, data_wait_seconds: 0.0, was_finished: true })
}

/// The config that the run has: the request's, or when going on the one in the run folder.
pub(super) fn resolve(request: &TrainRequest<'_>) -> Result<TrainConfig> {
    if is_url(request.out) {
        return Err(Error::Invalid(format!(
            "run `{}`: a run's folder is a local one; only caches lie in object stores",
            request.out.display()
        )));
    }
    if !continues(request) {
        RunFolder::check_free(request.out)?;
        let mut config = complete(request.config.clone().unwrap_or_default(), request.registry)?;
        config.check()?;
        // Sums over rows depend on how many threads share them, so the number is the run's and not the machine's.
        config.compute.threads.get_or_insert_with(tch::get_num_threads);
        return Ok(config);
    }
    let path = request.out.join("config.toml");
    if !path.is_file() {
        return Err(circuitlab_core::Error::format(request.out, "no run folder: it holds no `config.toml`").into());
    }
    request.registry.require(&format!("run `{}`", request.out.display()), &Origin::read(request.out)?.providers)?;
    let own: TrainConfig = config::resolve(Some(&path), &[], serde_json::Value::Null)?;
    own.check()?;
    let own = complete(own, request.registry)?;
    let given = request.config.clone().map(|mut given| {
        given.compute.threads = given.compute.threads.or(own.compute.threads);
        // Libraries may have moved; the plugins in them are compared.
        given.plugins.clone_from(&own.plugins);
        complete(given, request.registry)
    });
    if given.transpose()?.is_some_and(|given| given != own) {
        return Err(Error::Invalid(format!(
            "a resumed run keeps its own config `{}`, and the one given differs from it; leave `--config`, `--set` and the flags that stand for settings (such as `--model`) away",
            path.display()
        )));
    }
    Ok(own)
}

/// The same with every plugin's defaults filled in, so that a later change of theirs does not change the run.
fn complete(mut config: TrainConfig, registry: &Registry) -> Result<TrainConfig> {
    config.transcoder = registry.complete::<dyn Transcoder>(&config.transcoder)?;
    config.activation = registry.complete::<dyn SparsityActivation>(&config.activation)?;
    config.strategy = registry.complete::<dyn ParallelismStrategy>(&config.strategy)?;
    for sink in &mut config.metrics.sinks {
        *sink = registry.complete::<dyn MetricSink>(sink)?;
    }
    config.activations = config.activations.map(source::placed);
    Ok(config)
}

struct Trainer<'a> {
    request: &'a TrainRequest<'a>,
    config: TrainConfig,
    rows: Rows,
    normalisation: Normalisation,
    schedule: Schedule,
    parts: Parts,
    run: RunFolder,
    state: TrainState,
    sampler: SamplerState,
}

impl<'a> Trainer<'a> {
    fn start(
        request: &'a TrainRequest<'a>,
        config: TrainConfig,
        rows: Rows,
        schedule: Schedule,
        mut parts: Parts,
        mut run: RunFolder,
        continues: bool,
    ) -> Result<Self> {
        let normalisation = rows.normalisation();
        let fresh = SamplerState { seed: config.seed, drawn_rows: 0 };
        let newest = checkpoint::newest(&run.checkpoints())?;
        let (state, sampler) = if let Some(folder) = &newest {
            let (state, saved) = TrainState::resume(&parts, &config, folder)?;
            run.log(&format!("continues from {}", folder.display()))?;
            (state, saved.sampler)
        } else {
            let first = first_rows(&rows, &config, &normalisation)?;
            (TrainState::start(&parts, &config, &first)?, fresh)
        };
        // A run that was killed before its first checkpoint may have figures too: those of all steps are made again.
        parts.sinks.open(run.path(), continues.then_some(state.step))?;
        if !run.path().join(Record::FILE).exists() {
            tracing::warn!("no plots are drawn: none of the run's sinks writes `{}`, as `jsonl` does", Record::FILE);
        }
        run.log(&format!(
            "{} steps of {} rows; {} layers of {} features, {} parameters",
            schedule.steps,
            config.data.batch_rows,
            parts.dims.layers,
            parts.dims.d_features,
            state.params.count()
        ))?;
        Ok(Self { request, config, rows, normalisation, schedule, parts, run, state, sampler })
    }

    /// Trains to the end; `stepped` is set once there is a step that would be lost with the run folder.
    fn run(mut self, stepped: &mut bool) -> Result<TrainSummary> {
        let started = Instant::now();
        let mut loader = self.loader()?;
        let mut interval = Interval::default();
        let mut last = None;
        let mut pace = Pace::new(self.state.step);
        self.request.progress.begin("train", self.schedule.steps * self.config.data.batch_rows as u64, "tokens");
        self.request.progress.at(self.state.step * self.config.data.batch_rows as u64, "");
        while self.state.step < self.schedule.steps {
            let loaded = pace.waiting(|| loader.next())?;
            let metrics = self.step(&to_device(&loaded.batch, &self.config), &mut interval)?;
            self.sampler = loaded.state;
            loader.give_back(loaded.batch);
            *stepped = true;
            let save = self.is_checkpoint();
            if save || self.state.step.is_multiple_of(self.config.metrics.every_steps) || self.state.step == self.schedule.steps {
                let mut record = interval.finish(self.state.step, metrics, &self.state.dead(self.config.metrics.dead_rows));
                pace.record(&mut record, self.config.data.batch_rows);
                self.parts.sinks.write(&record)?;
                self.request.progress.at(self.state.step * self.config.data.batch_rows as u64, &note(&record));
                last = Some(record);
            }
            if save {
                self.checkpoint()?;
            }
        }
        self.request.progress.end();
        self.finish(last, started, pace.waited_s)
    }

    fn loader(&self) -> Result<Loader> {
        let options = loader_options(&self.config, &self.normalisation).with_share(self.parts.strategy.mesh().data);
        Loader::start(self.rows.clone(), self.sampler, &options)
    }

    /// One optimiser step.
    fn step(&mut self, batch: &Batch, interval: &mut Interval) -> Result<StepMetrics> {
        let penalty = self.config.sparsity.at(self.schedule.lambda_share(self.state.step));
        let learning_rate = self.schedule.learning_rate(self.state.step);
        let strategy = &*self.parts.strategy;
        let context = StepContext::whole(&*self.parts.activation, strategy, penalty, batch.inputs.size()[0]);
        let mut output = self.parts.transcoder.step(&self.state.params, batch, &context)?;
        strategy.reduce_gradients(&mut output.gradients)?;
        let gradient_norm = global_norm(&output.gradients, output.gradient_squares.as_deref(), &self.state.params, strategy)?;
        if !gradient_norm.is_finite() {
            return Err(Error::Invalid(format!(
                "the gradient is {gradient_norm} at step {}: the run diverged, or the cache holds values that are too large; start a new run with a smaller `optimiser.learning_rate`, or look at the last checkpoint",
                self.state.step
            )));
        }
        let scale = clip_scale(gradient_norm, self.config.optimiser.clip_norm);
        self.state.adam.step(&mut self.state.params, &output.gradients, learning_rate, scale)?;
        self.state.step += 1;
        self.state.count_silence(&output, batch.inputs.size()[0]);
        let metrics = StepMetrics { gradient_norm, learning_rate, lambda: penalty.lambda };
        interval.add(batch, &output, metrics);
        Ok(metrics)
    }

    fn is_checkpoint(&self) -> bool {
        let every = self.config.checkpoint.every_steps.unwrap_or_else(|| self.schedule.steps.div_ceil(10));
        self.state.step.is_multiple_of(every) && self.state.step < self.schedule.steps
    }

    fn checkpoint(&mut self) -> Result<()> {
        self.parts.sinks.sync()?;
        let state = SavedState { format: checkpoint::FORMAT, step: self.state.step, sampler: self.sampler };
        let TrainState { params, adam, silent_rows, .. } = &mut self.state;
        let tensors = SavedTensors::of(params, adam, silent_rows)?;
        checkpoint::write(&self.run.checkpoints(), &state, &tensors, |folder| self.export(folder))?;
        checkpoint::prune(&self.run.checkpoints(), self.config.checkpoint.keep)?;
        self.plot();
        Ok(())
    }

    /// Draws the plots; a run does not end because a picture of it cannot be drawn.
    fn plot(&self) {
        if let Err(error) = Sinks::plot(self.run.path()) {
            tracing::warn!("cannot draw the plots: {error}");
        }
    }

    /// Writes the CLT folder with normalisation folded in.
    fn export(&self, folder: &Path) -> Result<()> {
        let mut params = self.state.adam.masters(&self.state.params)?.copy();
        let Normalisation { input_scales, target_scales } = &self.normalisation;
        self.parts.transcoder.fold(&mut params, input_scales, target_scales)?;
        saved::write(folder, &self.card()?, &*self.parts.transcoder, &params, &*self.parts.activation)
    }

    fn card(&self) -> Result<Card> {
        let origin = self.rows.identity();
        let (activation, k) = self.parts.saved_as.keys();
        let SavedActivation { spec, trained_with } = self.parts.saved_as.clone();
        let needed = [(Kind::Transcoder, self.config.transcoder.name.as_str()), (Kind::Activation, spec.name.as_str())];
        Ok(Card {
            model_kind: self.parts.transcoder.model_kind().to_owned(),
            model_name: origin.model.clone(),
            activation,
            k,
            feature_input_hook: origin.input_hook.to_string(),
            feature_output_hook: origin.output_hook.to_string(),
            circuitlab: Some(Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                transcoder: self.request.registry.complete::<dyn Transcoder>(&self.config.transcoder)?,
                providers: self.request.registry.providers(needed)?,
                activation: spec,
                trained_with,
                model_family: origin.family.clone(),
                model_fingerprint: origin.fingerprint.clone(),
                drop_special_rows: origin.drop_special_rows,
                input_scales: self.normalisation.input_scales.clone(),
                target_scales: self.normalisation.target_scales.clone(),
                steps: self.state.step,
                rows: self.state.step * self.config.data.batch_rows as u64,
            }),
        })
    }

    fn finish(mut self, last: Option<Record>, started: Instant, data_wait_seconds: f64) -> Result<TrainSummary> {
        self.parts.sinks.sync()?;
        let result = self.run.result();
        if !result.exists() {
            files::write_folder(&result, |part| self.export(part))?;
        }
        checkpoint::prune(&self.run.checkpoints(), self.config.checkpoint.keep)?;
        self.plot();
        let seconds = started.elapsed().as_secs_f64();
        self.run.log(&format!(
            "finished after {seconds:.1} s, of which {data_wait_seconds:.1} s were spent waiting for rows; the transcoder is in {}",
            result.display()
        ))?;
        let rows = self.state.step * self.config.data.batch_rows as u64;
        Ok(TrainSummary { result, steps: self.state.step, rows, last, seconds, data_wait_seconds, was_finished: false })
    }
}

/// The first rows of the run, `[rows, layer, d_model]`: those that the encoder biases are set from. They are trained on too.
fn first_rows(source: &Rows, config: &TrainConfig, normalisation: &Normalisation) -> Result<Tensor> {
    let rows = config.init.rows.min(usize::try_from(source.count()).unwrap_or(usize::MAX));
    let state = SamplerState { seed: config.seed, drawn_rows: 0 };
    let options = LoaderOptions { batch_rows: rows, ..loader_options(config, normalisation) };
    let mut loader = Loader::start(source.clone(), state, &options)?;
    Ok(to_device(&loader.next()?.batch, config).inputs)
}

fn loader_options(config: &TrainConfig, normalisation: &Normalisation) -> LoaderOptions {
    let DataConfig { batch_rows, window_chunks } = config.data;
    let (_, device) = placement(config);
    let pinned = device.is_cuda().then_some(device);
    LoaderOptions { batch_rows, window_chunks, normalisation: normalisation.clone(), share: Axis::SINGLE, pinned }
}

fn to_device(batch: &Batch, config: &TrainConfig) -> Batch {
    let (kind, device) = placement(config);
    Batch { inputs: batch.inputs.to_device(device).to_kind(kind), targets: batch.targets.to_device(device).to_kind(kind) }
}

/// The figures that a progress bar has room for.
fn note(record: &Record) -> String {
    let of = |name| record.get(name).unwrap_or(f64::NAN);
    format!(
        "loss {:.2}  EV {:.3}  L0 {:.1}  dead {:.0}",
        of(names::LOSS_TOTAL),
        of(names::EXPLAINED_VARIANCE),
        of(names::L0),
        of(names::DEAD_FEATURES)
    )
}
