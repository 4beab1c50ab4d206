//! `circuitlab train`.

use circuitlab::cache::Cache;
use circuitlab::sink::{Record, names};
use circuitlab::train::{Schedule, TrainConfig, TrainRequest, TrainSummary};
use circuitlab_core::{Dims, SparsityActivation, Transcoder};
use serde_json::json;

use super::Context;
use crate::args::TrainArgs;
use crate::output::{Table, human};

pub(super) fn run(args: &TrainArgs, context: &Context) -> anyhow::Result<()> {
    let plain = args.config.is_none() && overrides(args).is_empty();
    let config = if args.resume && plain { None } else { Some(config(args)?) };
    if args.dry_run {
        return dry_run(args, &config.unwrap_or_default(), context);
    }
    let request = TrainRequest {
        registry: &context.registry,
        cache: &args.cache,
        out: &args.out,
        config,
        resume: args.resume,
        progress: &context.bars,
    };
    let summary = circuitlab::train::train(&request)?;
    print(&summary, context)
}

/// The flags that stand for settings, after those given by `--set`.
fn overrides(args: &TrainArgs) -> Vec<String> {
    let flags = [("transcoder", &args.transcoder), ("activation", &args.activation), ("strategy", &args.strategy)];
    let named = flags.into_iter().filter_map(|(key, name)| name.as_ref().map(|name| format!("{key}={name}")));
    args.set.iter().cloned().chain(named).collect()
}

fn config(args: &TrainArgs) -> anyhow::Result<TrainConfig> {
    let presets = serde_json::to_value(TrainConfig::default())?;
    Ok(circuitlab::config::resolve(args.config.as_deref(), &overrides(args), presets)?)
}

fn dry_run(args: &TrainArgs, config: &TrainConfig, context: &Context) -> anyhow::Result<()> {
    config.check()?;
    let cache = Cache::open(&args.cache, &context.registry)?;
    let schedule = Schedule::new(config, cache.rows())?;
    let origin = cache.identity();
    let dims = Dims { layers: origin.layers, d_model: origin.d_model, d_features: config.size.features(origin.d_model)? };
    let transcoder = context.registry.build::<dyn Transcoder>(&config.transcoder)?;
    let activation = context.registry.build::<dyn SparsityActivation>(&config.activation)?;
    let parameters: u64 =
        transcoder.parameters(dims, &*activation).iter().map(|spec| spec.shape.iter().product::<i64>().unsigned_abs()).sum();
    let value_bytes = if matches!(config.compute.dtype, circuitlab_core::config::FloatKind::F64) { 8 } else { 4 };
    // Parameters, gradients and two moments; pre-activations, activations and their gradients, of all layers at once.
    let rows = config.data.batch_rows as u64;
    let memory = value_bytes * (4 * parameters + 3 * rows * dims.layers as u64 * dims.d_features as u64);
    let checkpoint = value_bytes * 4 * parameters;
    // Per source layer: the encoder's product and its gradient, and for each target layer the decoder's and its two gradients.
    let products: usize = (0..dims.layers).map(|source| 2 + 3 * transcoder.targets(dims, source).len()).sum();
    let flop = 2.0 * (schedule.steps * rows) as f64 * (dims.d_model * dims.d_features * products) as f64;
    let facts = json!({
        "config": config, "parameters": parameters, "steps": schedule.steps, "rows": schedule.steps * rows, "memory_bytes": memory,
        "checkpoint_bytes": checkpoint, "dense_flop": flop,
    });
    context.print(&facts, || {
        let mut table = Table::new(["dry run", "nothing was written"]);
        table.row(["parameters", &human::whole(parameters)]);
        table.row(["steps", &human::whole(schedule.steps)]);
        table.row(["rows", &human::whole(schedule.steps * rows)]);
        table.row(["memory", &format!("about {}", human::bytes(memory))]);
        table.row(["each checkpoint", &human::bytes(checkpoint)]);
        table.row(["dense FLOP", &human::count(flop)]);
        let toml = circuitlab::config::to_toml(config).unwrap_or_default();
        format!("{table}\n\n{toml}")
    })
}

fn print(summary: &TrainSummary, context: &Context) -> anyhow::Result<()> {
    let figure = |name: &str| summary.last.as_ref().and_then(|record| record.get(name));
    let figures = json!({
        "result": summary.result, "steps": summary.steps, "rows": summary.rows, "seconds": summary.seconds,
        "loss": figure(names::LOSS_TOTAL), "explained_variance": figure(names::EXPLAINED_VARIANCE), "l0": figure(names::L0),
        "dead_features": figure(names::DEAD_FEATURES),
    });
    context.print(&figures, || lines(summary))
}

fn lines(summary: &TrainSummary) -> String {
    let figure = |name: &str| summary.last.as_ref().and_then(|record: &Record| record.get(name)).unwrap_or(f64::NAN);
    format!(
        "trained {} steps on {} rows; on the last of them: explained variance {:.3}, {:.1} active features a row, {:.0} dead\ntranscoder: {}",
        human::whole(summary.steps),
        human::whole(summary.rows),
        figure(names::EXPLAINED_VARIANCE),
        figure(names::L0),
        figure(names::DEAD_FEATURES),
        summary.result.display()
    )
}
