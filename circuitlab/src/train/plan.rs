//! What a run would cost, found out without starting it.

mod largest;
mod layout;
mod memory;
mod traffic;
mod work;

use std::sync::Arc;

use circuitlab_core::sparsity::has_threshold_form;
use circuitlab_core::{Axis, Dims, Kind as Slot, ParallelismStrategy, ParameterSpec, Precision, SparsityActivation, Spec, Transcoder};
use serde::Serialize;
use tch::{Device, Kind};

use super::config::{MomentKind, TrainConfig};
use super::resume::resolve;
use super::schedule::Schedule;
use super::sharing::Sharing;
use super::source;
use super::state::{Parts, check_scope, check_sizes, placement};
use super::step::pieces;
use super::trainer::TrainRequest;
use crate::{Error, Result};

pub use largest::Largest;
pub use layout::Layout;
pub use memory::Memory;
pub use traffic::Communication;
pub use work::{Rates, Work};

use memory::Sizes;
use traffic::Traffic;

/// What a plan is made for, beside what the run itself says.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanFor {
    /// Ranks, in the layout of the strategy's name; the strategy need not be there. Default: those of the strategy as it is.
    pub ranks: Option<usize>,
    /// The layout, whatever the strategy. Default: the strategy's.
    pub layout: Option<Layout>,
    /// Layers and `d_model`, in place of a cache, whose rows are then not known.
    pub shape: Option<(usize, usize)>,
    /// Active features of a layer on a row, which the cost of a sparse step depends on. Default: 32.
    pub l0: f64,
    /// Bytes of a rank where it computes, for which the largest transcoder is looked for under each strategy.
    pub memory: Option<u64>,
}

impl Default for PlanFor {
    fn default() -> Self {
        Self { ranks: None, layout: None, shape: None, l0: 32.0, memory: None }
    }
}

/// The cost of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The resolved config.
    pub config: TrainConfig,
    /// How the ranks share the run.
    pub layout: Layout,
    /// All ranks.
    pub ranks: usize,
    /// Numbers that are trained, of all ranks and all transcoders together.
    pub parameters: u64,
    /// Steps of the run, where the rows are known or the config says.
    pub steps: Option<u64>,
    /// Rows of the run, those of later epochs counted again.
    pub rows: Option<u64>,
    /// The memory of a rank, part by part.
    pub memory: Memory,
    /// The most that a rank takes where it computes: on a CPU all of its memory, else its device's.
    pub memory_bytes: u64,
    /// The most that it takes of the host's memory beside a device of its own.
    pub host_bytes: Option<u64>,
    /// Size of a checkpoint, of all ranks together.
    pub checkpoint_bytes: u64,
    /// What a run takes of the disk at most: the checkpoints that are kept, one that is being written, and the result.
    pub disk_bytes: u64,
    /// The arithmetic of a step, of each rank.
    pub step: Work,
    /// What a rank sends in a step, by axis and operation. Records and checkpoints, which are not of every step, come on top.
    pub communication: Vec<Communication>,
    /// The largest size under each strategy; nothing where the plan is for no amount of memory.
    pub largest: Vec<Largest>,
    /// Floating-point operations of the whole run's products on all ranks, all of them dense.
    pub dense_flop: Option<f64>,
}

/// Checks all that [`train`](super::train) checks before it begins, and adds up the cost. Writes nothing. On a CPU it measures for less
/// than a second how fast the machine is.
///
/// # Errors
/// Those of [`train`](super::train), and layouts that do not fit the run.
pub fn plan(request: &TrainRequest<'_>, plan_for: &PlanFor) -> Result<Plan> {
    let (config, layout) = settle(request, plan_for)?;
    crate::device::set_threads(config.compute.threads)?;
    let (_, device) = placement(&config);
    let all_rows = config.data.batch_rows as u64;
    let largest = match plan_for.memory {
        Some(bytes) => largest::largest(&Subject::of(request, plan_for, &config)?, &config, layout.ranks(), bytes)?,
        None => Vec::new(),
    };
    let members = config.members()?.into_iter().map(|(_, member)| member_cost(request, plan_for, &member, layout));
    let mut members = members.collect::<Result<Vec<_>>>()?.into_iter();
    let first = members.next().ok_or_else(|| Error::Invalid("there is nothing to train".to_owned()))?;
    let Dims { layers, d_model, .. } = first.dims;
    let MemberCost { parameters, memory, step, traffic, checkpoint_bytes, result_bytes, rows, rates, .. } =
        members.fold(first, |sum, member| sum.with(&member));
    let step = rates.map_or(step, |rates| step.at(rates));
    let schedule = (rows.is_some() || config.schedule.steps.is_some()).then(|| Schedule::new(&config, rows.unwrap_or(0))).transpose()?;
    let steps = schedule.map(|schedule| schedule.steps);
    let in_parts = Sharing::in_parts(&config, layout.data, layout.feature)?;
    let of_stream = Traffic::of_stream(layers * d_model, layout, config.data.batch_rows, in_parts);
    Ok(Plan {
        layout,
        ranks: layout.ranks(),
        parameters,
        steps,
        rows: steps.map(|steps| steps * all_rows),
        memory_bytes: memory.peak(device),
        host_bytes: memory.host(device),
        memory,
        checkpoint_bytes,
        disk_bytes: (config.checkpoint.keep as u64 + 1) * checkpoint_bytes + result_bytes,
        dense_flop: steps.map(|steps| steps as f64 * step.dense_flop * layout.ranks() as f64),
        step,
        communication: traffic.with(&of_stream).into_list(),
        largest,
        config,
    })
}

/// The cost of one transcoder, or of several on one stream.
struct MemberCost {
    dims: Dims,
    parameters: u64,
    memory: Memory,
    step: Work,
    traffic: Traffic,
    checkpoint_bytes: u64,
    result_bytes: u64,
    /// Of an epoch, where there is a cache.
    rows: Option<u64>,
    /// Of this machine, where the run computes on its CPU.
    rates: Option<Rates>,
}

impl MemberCost {
    /// Both on one stream.
    fn with(self, other: &Self) -> Self {
        Self {
            parameters: self.parameters + other.parameters,
            memory: self.memory.with(&other.memory),
            step: self.step.with(&other.step),
            traffic: self.traffic.with(&other.traffic),
            checkpoint_bytes: self.checkpoint_bytes + other.checkpoint_bytes,
            result_bytes: self.result_bytes + other.result_bytes,
            ..self
        }
    }
}

/// Whether a step touches active entries alone: what it does with thresholds, unless it is told not to.
fn works_on_entries(config: &TrainConfig, activation: &dyn SparsityActivation) -> Result<bool> {
    let dense = config.transcoder.settings.get("step").is_some_and(|form| form == "dense");
    Ok(!dense && has_threshold_form(activation)?)
}

/// Bytes of a term of the loss: loops of our own have it in 64 bits.
fn term_bytes(config: &TrainConfig, activation: &dyn SparsityActivation) -> Result<u64> {
    let (kind, device) = placement(config);
    let by_libtorch = config.transcoder.settings.get("step").is_some_and(|form| form == "operations");
    let by_loops = device == Device::Cpu && !by_libtorch && works_on_entries(config, activation)?;
    let kind = if by_loops { Kind::Double } else { Precision::Full.kind(kind) };
    Ok(kind.elt_size_in_bytes() as u64)
}

/// What of a rank's memory the sizes decide.
fn memory_of(subject: &Subject, dims: Dims, specs: &[ParameterSpec], config: &TrainConfig, layout: Layout) -> Result<Memory> {
    check_scope(&config.activation.name, subject.activation.scope(), layout.data, layout.feature)?;
    if layout.feature > dims.d_features {
        return Err(Error::Invalid(format!("{} features are too few for {} feature ranks", dims.d_features, layout.feature)));
    }
    if layout.data > config.data.batch_rows {
        return Err(Error::Invalid(format!(
            "a batch of {} rows has none for some of {} ranks; make `data.batch_rows` larger",
            config.data.batch_rows, layout.data
        )));
    }
    let batch_rows = rows_of_rank(config, layout);
    let active_share = works_on_entries(config, &*subject.activation)?.then(|| config.init.share(dims.d_features as f64));
    Ok(Memory::new(&Sizes {
        specs,
        dims,
        layout,
        kind: placement(config).0,
        moment_bytes: moment_bytes(specs, config),
        rows: batch_rows.div_ceil(micro_batches(config, layout) as u64),
        batch_rows,
        first_rows: (config.init.rows as u64).min(subject.rows.unwrap_or(u64::MAX)),
        // More are active at the start than ever after.
        active_share,
        windows: subject.windows,
        process: memory::process(),
    }))
}

/// The most rows that a rank has of a batch.
fn rows_of_rank(config: &TrainConfig, layout: Layout) -> u64 {
    (config.data.batch_rows as u64).div_ceil(layout.data as u64)
}

fn micro_batches(config: &TrainConfig, layout: Layout) -> usize {
    pieces(&config.data, Axis { rank: 0, size: layout.data })
}

fn member_cost(request: &TrainRequest<'_>, plan_for: &PlanFor, config: &TrainConfig, layout: Layout) -> Result<MemberCost> {
    let (kind, device) = placement(config);
    let subject = Subject::of(request, plan_for, config)?;
    let Subject { transcoder, activation, dims, rows, .. } = &subject;
    let (dims, rows) = (*dims, *rows);
    if let Some(rows) = rows {
        Schedule::new(config, rows)?;
    }
    let specs = transcoder.parameters(dims, &**activation)?;
    let memory = memory_of(&subject, dims, &specs, config, layout)?;
    if plan_for.l0 > dims.d_features as f64 && plan_for.l0 > PlanFor::default().l0 {
        return Err(Error::Invalid(format!("l0: a layer has {} features, of which {} cannot be active", dims.d_features, plan_for.l0)));
    }
    let batch_rows = rows_of_rank(config, layout);
    let step = Work::new(&**transcoder, dims, layout, batch_rows, plan_for.l0, optimiser_bytes(&specs, layout, config))?;
    let rates = (device == Device::Cpu).then(|| Rates::measure(dims, batch_rows, Precision::Full.kind(kind)));
    let traffic = Traffic::of_transcoder(&traffic::Sizes {
        specs: &specs,
        dims,
        layout,
        kind,
        batch_rows: config.data.batch_rows,
        pieces: micro_batches(config, layout),
        term_bytes: term_bytes(config, &**activation)?,
    });
    let full = Precision::Full.kind(kind).elt_size_in_bytes() as u64;
    let parameters: u64 = specs.iter().map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum();
    // The transcoder; and to go on with parameters, two moments and how long each feature has been silent.
    let (result_bytes, counters) = (full * parameters, 8 * (dims.layers * dims.d_features) as u64);
    let moments = (2.0 * moment_bytes(&specs, config) * parameters as f64) as u64;
    let checkpoint_bytes = result_bytes + full * parameters + moments + counters;
    Ok(MemberCost { dims, parameters, memory, step, traffic, checkpoint_bytes, result_bytes, rows, rates })
}

/// Bytes of a number of a moment, the mean over all parameters.
fn moment_bytes(specs: &[ParameterSpec], config: &TrainConfig) -> f64 {
    let count = |spec: &ParameterSpec| spec.shape.iter().product::<i64>() as f64;
    let all: f64 = specs.iter().map(count).sum();
    specs.iter().map(|spec| count(spec) * moment_bytes_of(spec, config)).sum::<f64>() / all.max(1.0)
}

fn moment_bytes_of(spec: &ParameterSpec, config: &TrainConfig) -> f64 {
    let full = Precision::Full.kind(placement(config).0).elt_size_in_bytes() as f64;
    // A byte, and a scale of 32 bits for 256 numbers.
    if config.optimiser.moments == MomentKind::Int8 && spec.shape.len() > 1 { 1.0 + 4.0 / 256.0 } else { full }
}

/// The resolved config, and the layout of its ranks.
fn settle(request: &TrainRequest<'_>, plan_for: &PlanFor) -> Result<(TrainConfig, Layout)> {
    if !(plan_for.l0 >= 0.0 && plan_for.l0.is_finite()) {
        return Err(Error::Invalid(format!("l0: expected a number of features not below 0, got {}", plan_for.l0)));
    }
    let Some(mut config) = request.config.clone().filter(|_| plan_for.ranks.is_some() || plan_for.layout.is_some()) else {
        let config = resolve(request)?;
        let layout = match Layout::of_strategy(&config.strategy, None)? {
            Some(layout) => layout,
            None => Layout::of_mesh(request.registry.build::<dyn ParallelismStrategy>(&config.strategy)?.mesh()),
        };
        return Ok((config, layout));
    };
    if request.registry.knows(Slot::Strategy, &config.strategy.name) {
        // It is not built here, and its settings are to be those of one that can be.
        request.registry.complete::<dyn ParallelismStrategy>(&config.strategy)?;
    }
    let strategy = config.strategy.clone();
    let layout = match (plan_for.layout, plan_for.ranks) {
        (Some(layout), Some(ranks)) if layout.ranks() != ranks => {
            return Err(Error::Invalid(format!("the mesh {layout} is {} ranks, not {ranks}", layout.ranks())));
        }
        (Some(layout), _) => layout,
        (None, ranks) => named(request, &strategy, ranks.unwrap_or(1))?,
    };
    // A strategy of many ranks cannot start here, and need not.
    config.strategy = Spec::named("single");
    let config = resolve(&TrainRequest { config: Some(config), ..*request })?;
    Ok((TrainConfig { strategy, ..config }, layout))
}

/// The layout that a strategy's name stands for or, of others, that it has.
fn named(request: &TrainRequest<'_>, strategy: &Spec, ranks: usize) -> Result<Layout> {
    if ranks == 0 {
        return Err(Error::Invalid("a run has at least 1 rank, not 0".to_owned()));
    }
    if let Some(layout) = Layout::of_strategy(strategy, Some(ranks))? {
        return Ok(layout);
    }
    let layout = Layout::of_mesh(request.registry.build::<dyn ParallelismStrategy>(strategy)?.mesh());
    if layout.ranks() == ranks {
        return Ok(layout);
    }
    Err(Error::Invalid(format!(
        "strategy `{}` is a mesh of {layout} here, and how it lays out {ranks} ranks is not known; give the mesh",
        strategy.name
    )))
}

/// What is trained.
struct Subject {
    transcoder: Box<dyn Transcoder>,
    activation: Box<dyn SparsityActivation>,
    dims: Dims,
    /// Of an epoch, where there is a cache.
    rows: Option<u64>,
    /// Bytes of the chunks in memory.
    windows: u64,
}

impl Subject {
    fn of(request: &TrainRequest<'_>, plan_for: &PlanFor, config: &TrainConfig) -> Result<Self> {
        if let Some((layers, d_model)) = plan_for.shape {
            if layers == 0 || d_model == 0 {
                return Err(Error::Invalid(format!("shape {layers}x{d_model}: expected at least one layer, and a `d_model` above 0")));
            }
            let dims = Dims { layers, d_model, d_features: config.size.features(d_model)? };
            check_sizes(config, dims)?;
            let (transcoder, activation) = (request.registry.build(&config.transcoder)?, request.registry.build(&config.activation)?);
            return Ok(Self { transcoder, activation, dims, rows: None, windows: 0 });
        }
        let source = source::open(request, config)?;
        let single = TrainConfig { strategy: Spec::named("single"), ..config.clone() };
        // A strategy of many ranks would wait for them, and its name says all that is needed.
        let is_known = plan_for.ranks.is_some() || plan_for.layout.is_some() || Layout::of_strategy(&config.strategy, None)?.is_some();
        let known = if is_known { &single } else { config };
        let strategy: Arc<dyn ParallelismStrategy> = Arc::from(request.registry.build::<dyn ParallelismStrategy>(&known.strategy)?);
        let Parts { transcoder, activation, dims, .. } = Parts::build(request.registry, known, &source, &strategy)?;
        let windows = windows(source.chunk_rows().len(), config.data.window_chunks);
        let windows = windows.into_iter().map(|chunks| source.window_bytes(chunks)).sum();
        Ok(Self { transcoder, activation, dims, rows: Some(source.count()), windows })
    }
}

/// Chunks of the two windows that are in memory at most: one is read while another is trained on.
fn windows(chunks: usize, window_chunks: usize) -> [usize; 2] {
    let first = chunks.min(window_chunks);
    // The last window of an epoch may be smaller; where it is the only one, the next epoch's follows.
    let rest = chunks - first;
    [first, if rest == 0 { first } else { rest.min(window_chunks) }]
}

/// What a step of the optimiser reads and writes of a rank: the gradient once; the parameter, or its master copy, and both moments twice;
/// and a parameter that has a master copy is written.
fn optimiser_bytes(specs: &[ParameterSpec], layout: Layout, config: &TrainConfig) -> f64 {
    let (kind, _) = placement(config);
    let full = Precision::Full.kind(kind).elt_size_in_bytes() as f64;
    let of_number = |spec: &ParameterSpec| {
        let own = spec.precision.kind(kind).elt_size_in_bytes() as f64;
        3.0 * full + 4.0 * moment_bytes_of(spec, config) + if own < full { own } else { 0.0 }
    };
    specs.iter().map(|spec| layout.owned(spec) as f64 * of_number(spec)).sum()
}

#[cfg(test)]
mod tests {
    use super::windows;

    #[test]
    fn two_windows_follow_each_other() {
        assert_eq!([windows(9, 8), windows(3, 8), windows(40, 8), windows(16, 8)], [[8, 1], [3, 3], [8, 8], [8, 8]]);
    }
}
