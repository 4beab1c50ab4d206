//! One transcoder of a run: its parts, its state, its run folder, and its step.

use std::collections::BTreeMap;
use std::path::Path;

use circuitlab_core::{Batch, Kind, Parameters, Registry, Saving, Scales, StepContext, Transcoder, files};
use tch::Tensor;

use super::checkpoint::{self, SavedState, TrainTensor};
use super::config::TrainConfig;
use super::exchange::Shares;
use super::fault;
use super::metrics::{Interval, StepMetrics};
use super::optimiser::{clip_scale, global_norm};
use super::ranks;
use super::schedule::Schedule;
use super::state::{Parts, TrainState};
use super::step::{gradient, pieces};
use super::trainer::TrainedClt;
use crate::cache::{Normalisation, Rows, SamplerState};
use crate::run::RunFolder;
use crate::saved::{self, Card, Provenance, SavedActivation};
use crate::sink::{Record, Sinks};
use crate::{Error, Result};

/// What the transcoders of a run share.
#[derive(Debug)]
pub(super) struct Stream<'a> {
    pub(super) registry: &'a Registry,
    pub(super) rows: Rows,
    pub(super) normalisation: Normalisation,
}

/// What a member is made of, before it is known where it stands.
#[derive(Debug)]
pub(super) struct Plans {
    /// Its name, where the run trains several.
    pub(super) name: Option<String>,
    pub(super) config: TrainConfig,
    pub(super) schedule: Schedule,
    pub(super) parts: Parts,
    pub(super) run: RunFolder,
    /// Whether an earlier process may have begun it.
    pub(super) continues: bool,
}

/// The state before the first step, with biases set from the first rows.
fn begin(parts: &Parts, config: &TrainConfig, first: &Batch, fresh: SamplerState, stream: &Stream<'_>) -> Result<TrainState> {
    let state = TrainState::start(parts, config, &first.inputs)?;
    if state.is_finite() {
        return Ok(state);
    }
    let origin = fault::Origin::of_one(&stream.rows, config, fresh, first.inputs.size()[0] as usize);
    let fault = origin.fault("the start, where biases are set from rows,", first);
    Err(fault.unwrap_or_else(|| {
        let what = "the initial weights are not finite: a setting such as `activation.threshold` is beyond what `compute.dtype` holds";
        Error::Invalid(what.to_owned())
    }))
}

/// One transcoder that is trained.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: Option<String>,
    config: TrainConfig,
    schedule: Schedule,
    parts: Parts,
    run: RunFolder,
    state: TrainState,
    /// Where the sequence of rows stands after the last step.
    pub(super) sampler: SamplerState,
    interval: Interval,
    last_step: Option<StepMetrics>,
    pub(super) last: Option<Record>,
}

impl Member {
    /// Goes on from the newest checkpoint, or begins; `first_rows` gives the rows that biases are set from.
    pub(super) fn open(plans: Plans, first_rows: impl FnOnce(&TrainConfig) -> Result<Batch>, stream: &Stream<'_>) -> Result<Self> {
        let Plans { name, config, schedule, mut parts, mut run, continues } = plans;
        let newest = ranks::told(&*parts.strategy, || {
            let newest = checkpoint::newest(&run.checkpoints())?;
            Ok(newest.and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())).unwrap_or_default())
        })?;
        let (state, sampler) = if newest.is_empty() {
            let fresh = SamplerState { seed: config.seed, drawn_rows: 0 };
            (begin(&parts, &config, &first_rows(&config)?, fresh, stream)?, fresh)
        } else {
            let folder = run.checkpoints().join(newest);
            let (state, saved) = TrainState::resume(&parts, &config, &folder)?;
            run.log(&format!("continues from {}", folder.display()))?;
            (state, saved.sampler)
        };
        // A run that was killed before its first checkpoint may have figures too: those of all steps are made again.
        ranks::told(&*parts.strategy, || {
            parts.sinks.open(run.path(), continues.then_some(state.step))?;
            if !run.path().join(Record::FILE).exists() {
                tracing::warn!("no plots are drawn: none of the run's sinks writes `{}`, as `jsonl` does", Record::FILE);
            }
            Ok(String::new())
        })?;
        run.log(&format!(
            "{} steps of {} rows; {} layers of {} features, {} parameters",
            schedule.steps,
            config.data.batch_rows,
            parts.dims.layers,
            parts.dims.d_features,
            state.specs.iter().map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum::<u64>()
        ))?;
        Ok(Self { name, config, schedule, parts, run, state, sampler, interval: Interval::default(), last_step: None, last: None })
    }

    /// Steps taken.
    pub(super) fn steps(&self) -> u64 {
        self.state.step
    }

    /// One optimiser step. `variance` is the batch's, of each layer; `after` is where the sequence of rows stands after it.
    pub(super) fn step(&mut self, batch: &Batch, variance: &Tensor, after: SamplerState, origin: &fault::Origin<'_>) -> Result<()> {
        let step = self.state.step;
        let penalty = self.config.sparsity.at(self.schedule.lambda_share(step));
        let learning_rate = self.schedule.learning_rate(step);
        let Parts { transcoder, activation, strategy, .. } = &mut self.parts;
        let mean_rows = self.config.data.batch_rows as i64;
        let context =
            StepContext { activation: &**activation, strategy: &**strategy, penalty, mean_rows, accumulate: false, exchange: None };
        let pieces = pieces(&self.config.data, strategy.mesh().data);
        let strategy = &**strategy;
        let shares = Shares::new(strategy, &self.state.specs, &self.state.params);
        let mut output = gradient(&mut **transcoder, &self.state.params, batch, &context, Some(&shares), pieces)?;
        output.gradients = shares.finish(&output.gradients)?;
        let gradient_norm = global_norm(&output.gradients, output.gradient_squares.as_deref(), &self.state.params, strategy)?;
        if !gradient_norm.is_finite() {
            return Err(self.not_finite(gradient_norm, batch, origin));
        }
        let scale = clip_scale(gradient_norm, self.config.optimiser.clip_norm);
        self.state.adam.step(&mut self.state.params, &output.gradients, learning_rate, scale)?;
        self.state.step += 1;
        self.sampler = after;
        let rows = self.config.data.batch_rows;
        self.state.count_silence(&output, rows as i64);
        let metrics = StepMetrics { gradient_norm, learning_rate, lambda: penalty.lambda };
        self.interval.add(rows as u64, variance, &output, metrics);
        self.last_step = Some(metrics);
        Ok(())
    }

    /// The norm is that of all ranks, so all of them are here, and any of them may have the row that is at fault.
    fn not_finite(&self, norm: f64, batch: &Batch, origin: &fault::Origin<'_>) -> Error {
        let step = self.state.step;
        let own = origin.fault(&format!("step {step}"), batch);
        let said = ranks::heard(&*self.parts.strategy, &own.as_ref().map_or_else(String::new, ToString::to_string));
        let elsewhere = || Some(Error::Invalid(said.ok()?.into_iter().find(|fault| !fault.is_empty())?));
        own.or_else(elsewhere).unwrap_or_else(|| {
            Error::Invalid(format!(
                "the gradient is {norm} at step {step}{}, and its rows are finite: the run diverged; start a new one with a smaller `optimiser.learning_rate`, or look at the last checkpoint",
                self.name.as_ref().map_or_else(String::new, |name| format!(" of CLT `{name}`")),
            ))
        })
    }

    /// Writes the record of the steps since the last one, with figures of the run's pace.
    pub(super) fn record(&mut self, pace: &[(&'static str, f64)]) -> Result<()> {
        let Some(metrics) = self.last_step else { return Ok(()) };
        let strategy = &*self.parts.strategy;
        let dead = self.state.dead(self.config.metrics.dead_rows, strategy)?;
        let mut record = self.interval.finish(self.state.step, metrics, &dead, strategy)?;
        for (name, figure) in pace {
            record.push(*name, *figure);
        }
        if self.run.is_written_here() {
            self.parts.sinks.write(&record)?;
        }
        self.last = Some(record);
        Ok(())
    }

    /// Writes a checkpoint, and removes old ones.
    pub(super) fn checkpoint(&mut self, stream: &Stream<'_>) -> Result<()> {
        let masters = self.state.adam.masters(&self.state.params)?;
        let training = self.state.training(&masters, &self.parts)?;
        let place = checkpoint::place(&self.run.checkpoints(), self.state.step);
        self.save(&place, &masters, &training, stream)
    }

    /// Writes a folder of the transcoder by all ranks, with what a run goes on from where that is given.
    fn save(&mut self, place: &Path, masters: &Parameters, training: &[TrainTensor], stream: &Stream<'_>) -> Result<()> {
        let card = self.card(stream)?;
        let Self { parts, state, run, sampler, config, .. } = self;
        let Normalisation { input_scales, target_scales } = &stream.normalisation;
        let mesh = parts.strategy.mesh();
        let saving = Saving {
            transcoder: &*parts.transcoder,
            activation: &*parts.activation,
            dims: parts.dims,
            scales: Scales { inputs: input_scales, targets: target_scales },
            specs: &state.specs,
            params: masters,
            mesh,
        };
        let sinks = &mut parts.sinks;
        checkpoint::commit(&*parts.strategy, place, &saving, training, |part, written| {
            sinks.sync()?;
            saved::write_card(part, &card)?;
            if !training.is_empty() {
                SavedState { format: checkpoint::FORMAT, step: state.step, sampler: *sampler, ranks: mesh.into(), written }.write(part)?;
            }
            files::publish_folder(place)?;
            checkpoint::prune(&run.checkpoints(), config.checkpoint.keep)?;
            plot(run.path());
            Ok(())
        })
    }

    fn card(&self, stream: &Stream<'_>) -> Result<Card> {
        let origin = stream.rows.identity();
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
            scan: None,
            transcoders: None,
            other: BTreeMap::default(),
            circuitlab: Some(Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                transcoder: stream.registry.complete::<dyn Transcoder>(&self.config.transcoder)?,
                providers: stream.registry.providers(needed)?,
                activation: spec,
                trained_with,
                model_family: origin.family.clone(),
                model_fingerprint: origin.fingerprint.clone(),
                drop_special_rows: origin.drop_special_rows,
                input_scales: stream.normalisation.input_scales.clone(),
                target_scales: stream.normalisation.target_scales.clone(),
                steps: self.state.step,
                rows: self.rows(),
            }),
        })
    }

    fn rows(&self) -> u64 {
        self.state.step * self.config.data.batch_rows as u64
    }

    /// Leaves the run as it is, with its newest checkpoint, for another process to go on with.
    pub(super) fn pause(mut self) -> Result<TrainedClt> {
        self.run.log(&format!("stopped after step {}, as asked; `--resume` goes on from there", self.state.step))?;
        let (steps, rows) = (self.state.step, self.rows());
        Ok(TrainedClt { name: self.name, result: self.run.result(), steps, rows, last: self.last })
    }

    /// Leaves the transcoder in `final`.
    pub(super) fn finish(mut self, stream: &Stream<'_>, seconds: f64, data_wait_seconds: f64) -> Result<TrainedClt> {
        let result = self.run.result();
        // An earlier process may have been killed after it had written it.
        let there = ranks::told(&*self.parts.strategy, || Ok(if result.exists() { "there".to_owned() } else { String::new() }))?;
        if there.is_empty() {
            let masters = self.state.adam.masters(&self.state.params)?;
            self.save(&result, &masters, &[], stream)?;
        }
        self.run.log(&format!(
            "finished after {seconds:.1} s, of which {data_wait_seconds:.1} s were spent waiting for rows; the transcoder is in {}",
            result.display()
        ))?;
        let (steps, rows) = (self.state.step, self.rows());
        Ok(TrainedClt { name: self.name, result, steps, rows, last: self.last })
    }
}

/// Draws the plots; a run does not end because a picture of it cannot be drawn.
fn plot(run: &Path) {
    if let Err(error) = Sinks::plot(run) {
        tracing::warn!("cannot draw the plots: {error}");
    }
}
