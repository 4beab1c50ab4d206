//! `circuitlab train`.

use std::path::PathBuf;
use std::time::Duration;

use circuitlab::sink::{Record, names};
use circuitlab::train::{Communication, Largest, Memory, Plan, PlanFor, TrainConfig, TrainRequest, TrainSummary, TrainedClt};
use serde_json::{Value, json};

use super::{Context, resume};
use crate::args::TrainArgs;
use crate::output::{Table, human};
use crate::signals;

pub(super) fn run(args: &TrainArgs, context: &Context) -> anyhow::Result<()> {
    let plain = args.config.is_none() && overrides(args).is_empty();
    let config = if args.resume && plain { None } else { Some(config(args)?) };
    let mut request = TrainRequest {
        registry: &context.registry,
        cache: args.cache.as_deref(),
        out: &args.out,
        config,
        resume: args.resume,
        progress: &context.bars,
        stop: None,
    };
    if args.dry_run {
        let plan_for = PlanFor { ranks: args.ranks, layout: args.mesh, shape: args.shape, l0: args.l0, memory: args.memory };
        let plan = circuitlab::train::plan(&request, &plan_for)?;
        return context.print(&plan, || cost(&plan, args.memory));
    }
    refuse_ranks_without_a_strategy(&request)?;
    request.stop = Some(signals::asks_to_stop()?);
    let summary = circuitlab::train::train(&request)?;
    // Of several ranks one is enough to say it.
    if summary.leads { print(&summary, args, context) } else { Ok(()) }
}

/// Refuses several processes of `single`, each of which would train alone, into one folder.
fn refuse_ranks_without_a_strategy(request: &TrainRequest<'_>) -> anyhow::Result<()> {
    let Some(ranks) = resume::ranks().filter(|ranks| *ranks > 1) else { return Ok(()) };
    let recorded = request.out.join("config.toml");
    let strategy = match &request.config {
        Some(config) => config.strategy.name.clone(),
        None if recorded.is_file() => circuitlab::config::resolve::<TrainConfig>(Some(&recorded), &[], Value::Null)?.strategy.name,
        None => return Ok(()),
    };
    anyhow::ensure!(
        strategy != "single",
        "{ranks} ranks were started, and the strategy is `single`, which is one; name one, such as `--strategy ddp`, `fsdp`, `feature-sharded`"
    );
    Ok(())
}

/// The plugin libraries that the settings name, and those that a run to go on with was made with.
pub(super) fn plugin_paths(args: &TrainArgs) -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let own = args.out.join("config.toml");
    if !(args.resume && own.is_file()) {
        return Ok((config(args)?.plugins.paths, Vec::new()));
    }
    let recorded: TrainConfig = circuitlab::config::resolve(Some(&own), &[], serde_json::Value::Null)?;
    Ok((Vec::new(), recorded.plugins.paths))
}

/// The flags that stand for settings, then those given by `--set`: they refine what a flag names, as in
/// `--activation topk --set activation.k=8`.
fn overrides(args: &TrainArgs) -> Vec<String> {
    let flags = [("transcoder", &args.transcoder), ("activation", &args.activation), ("strategy", &args.strategy)];
    let named = flags.into_iter().filter_map(|(key, name)| name.as_ref().map(|name| format!("{key}={name}")));
    // A list of texts in JSON is one in TOML too.
    let sinks = (!args.sink.is_empty()).then(|| format!("metrics.sinks={}", json!(args.sink)));
    named.chain(sinks).chain(activations(args)).chain(args.set.iter().cloned()).collect()
}

/// The flags that stand for a model and text in place of a cache.
fn activations(args: &TrainArgs) -> Vec<String> {
    let Some(model) = &args.model else { return Vec::new() };
    let mut settings = vec![format!("activations.model={}", json!(model)), format!("activations.text={}", json!(args.text))];
    settings.extend(args.range.as_ref().map(|range| format!("activations.settings.range={}", json!(range))));
    settings.extend(args.context.map(|context| format!("activations.settings.context={context}")));
    settings
}

/// Of a run that goes on, flags are laid over its own config.
fn config(args: &TrainArgs) -> anyhow::Result<TrainConfig> {
    let own = args.out.join("config.toml");
    if args.resume && args.config.is_none() && own.is_file() {
        return Ok(circuitlab::config::resolve(Some(&own), &overrides(args), Value::Null)?);
    }
    let presets = serde_json::to_value(TrainConfig::default())?;
    Ok(circuitlab::config::resolve(args.config.as_deref(), &overrides(args), presets)?)
}

fn cost(plan: &Plan, memory_of_rank: Option<u64>) -> String {
    let unknown = || "not known without a cache".to_owned();
    let mut rows = vec![
        ("parameters".to_owned(), human::whole(plan.parameters)),
        ("steps".to_owned(), plan.steps.map_or_else(unknown, human::whole)),
        ("rows".to_owned(), plan.rows.map_or_else(unknown, human::whole)),
        ("ranks".to_owned(), format!("{} ({})", human::whole(plan.ranks as u64), plan.layout)),
        ("memory of a rank".to_owned(), format!("about {}", human::bytes(plan.memory_bytes))),
    ];
    rows.extend(plan.host_bytes.map(|bytes| ("  beside it on the host".to_owned(), format!("about {}", human::bytes(bytes)))));
    rows.extend(memory(&plan.memory));
    rows.push(("each checkpoint".to_owned(), human::bytes(plan.checkpoint_bytes)));
    rows.push(("disk at most".to_owned(), human::bytes(plan.disk_bytes)));
    rows.extend(work(plan));
    rows.extend(communication(&plan.communication));
    rows.extend(largest(&plan.largest, memory_of_rank));
    let mut table = Table::new(["dry run", "nothing was written"]);
    for (name, value) in rows {
        table.row([name, value]);
    }
    let toml = circuitlab::config::to_toml(&plan.config).unwrap_or_default();
    // Comments, so that what is printed is a config file too.
    let comments: Vec<String> = table.to_string().lines().map(|line| format!("# {line}")).collect();
    format!("{}\n\n{toml}", comments.join("\n"))
}

/// The parts of a rank's memory, those that there are.
fn memory(memory: &Memory) -> impl Iterator<Item = (String, String)> {
    let parts = [
        ("weights", memory.weights),
        ("master copies", memory.masters),
        ("moments", memory.moments),
        ("gradients", memory.gradients),
        ("two layers, gathered", memory.gathered),
        ("activations of a step", memory.activations),
        ("pieces to save", memory.saving),
        ("batches", memory.batches),
        ("windows of chunks", memory.windows),
        ("before the first step", memory.start),
        ("the program itself", memory.process),
    ];
    let there = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
    there.map(|(name, bytes)| (format!("  {name}"), human::bytes(bytes)))
}

/// The arithmetic of a step and how long it takes.
fn work(plan: &Plan) -> impl Iterator<Item = (String, String)> {
    let step = &plan.step;
    let each = if plan.ranks > 1 { " of a rank" } else { "" };
    let seconds = |seconds: Option<f64>| {
        let text = |seconds: f64| human::duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        seconds.map_or_else(|| "not estimated: it is measured on CPUs only".to_owned(), text)
    };
    let rates = step.rates.map(|rates| {
        let text = format!("{}FLOP/s, {}B/s", human::count(rates.flop_per_s), human::count(rates.bytes_per_s));
        ("this machine, measured".to_owned(), text)
    });
    [
        (format!("FLOP of a step{each}, encoder alone"), human::count(step.encoder_flop)),
        (format!("FLOP of a step{each}, sparse with {} active of a layer", step.l0), human::count(step.sparse_flop)),
        (format!("FLOP of a step{each}, dense"), human::count(step.dense_flop)),
        (format!("time of a step{each}, at least"), seconds(step.least_seconds)),
        (format!("time of a step{each}, sparse with {} active of a layer", step.l0), seconds(step.sparse_seconds)),
        (format!("time of a step{each}, dense, at least"), seconds(step.dense_seconds)),
    ]
    .into_iter()
    .chain(rates)
    .chain(plan.dense_flop.map(|flop| ("dense FLOP of the run".to_owned(), human::count(flop))))
}

/// What a rank sends in a step; nothing where there is nobody to send it to.
fn communication(parts: &[Communication]) -> impl Iterator<Item = (String, String)> {
    let all = parts.iter().map(|part| part.bytes).sum::<u64>();
    let parts = parts.iter().map(|Communication { axis, operation, bytes }| (format!("  over {axis}, {operation}"), human::bytes(*bytes)));
    (all > 0).then(|| ("communication of a step, sent by a rank".to_owned(), human::bytes(all))).into_iter().chain(parts)
}

/// The largest size under each strategy.
fn largest(found: &[Largest], memory_of_rank: Option<u64>) -> impl Iterator<Item = (String, String)> {
    let title = memory_of_rank.map(|bytes| (format!("largest `size.expansion` in {} a rank", human::bytes(bytes)), String::new()));
    let of_way = |way: &Largest| {
        let value = match (way.expansion, way.memory_bytes, &way.refused) {
            (Some(expansion), Some(bytes), _) => format!("{expansion} ({})", human::bytes(bytes)),
            (_, _, Some(refused)) => refused.clone(),
            _ => "not even 1 fits".to_owned(),
        };
        (format!("  {} ({})", way.strategy, way.layout), value)
    };
    title.into_iter().chain(found.iter().map(of_way))
}

fn print(summary: &TrainSummary, args: &TrainArgs, context: &Context) -> anyhow::Result<()> {
    let clts: Vec<Value> = summary.clts.iter().map(figures).collect();
    let mut all = match &summary.clts[..] {
        [TrainedClt { name: None, .. }] => clts[0].clone(),
        _ => json!({"clts": clts}),
    };
    all["seconds"] = json!(summary.seconds);
    all["data_wait_share"] = json!(wait_share(summary));
    let Some(step) = summary.stopped_at else { return context.print(&all, || lines(summary)) };
    let again = resume::command_line(args);
    let by = if resume::ranks_of_another_launcher().is_some() { ", by the launcher that started it" } else { "" };
    (all["stopped_at"], all["resume"]) = (json!(step), json!(again));
    context.print(&all, || format!("stopped after step {}, with a checkpoint; to go on{by}: {again}", human::whole(step)))
}

/// What `--json` prints of a transcoder.
fn figures(clt: &TrainedClt) -> Value {
    let figure = |name: &str| clt.last.as_ref().and_then(|record| record.get(name));
    let mut figures = json!({
        "result": clt.result.display().to_string(), "steps": clt.steps, "rows": clt.rows,
        "loss": figure(names::LOSS_TOTAL), "explained_variance": figure(names::EXPLAINED_VARIANCE), "l0": figure(names::L0),
        "dead_features": figure(names::DEAD_FEATURES),
    });
    if let Some(name) = &clt.name {
        figures["name"] = json!(name);
    }
    figures
}

fn lines(summary: &TrainSummary) -> String {
    let waited =
        wait_share(summary).map_or_else(String::new, |share| format!("; {:.1} % of the time was spent waiting for data", 100.0 * share));
    let verb = if summary.was_finished { "was finished already:" } else { "trained" };
    let of_clt = |clt: &TrainedClt| {
        let figures = clt.last.as_ref().map_or_else(String::new, |record: &Record| {
            let figure = |name: &str| record.get(name).unwrap_or(f64::NAN);
            format!(
                "; on the last of them: explained variance {:.3}, {:.1} active features a row, {:.0} dead",
                figure(names::EXPLAINED_VARIANCE),
                figure(names::L0),
                figure(names::DEAD_FEATURES),
            )
        });
        let name = clt.name.as_ref().map_or_else(String::new, |name| format!("{name}: "));
        let (steps, rows) = (human::whole(clt.steps), human::whole(clt.rows));
        format!("{name}{verb} {steps} steps on {rows} rows{figures}{waited}\ntranscoder: {}", clt.result.display())
    };
    summary.clts.iter().map(of_clt).collect::<Vec<_>>().join("\n")
}

/// The share of this process's time that it waited for rows; nothing where it did not train.
fn wait_share(summary: &TrainSummary) -> Option<f64> {
    (summary.seconds > 0.0).then(|| summary.data_wait_seconds / summary.seconds)
}
