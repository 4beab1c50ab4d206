//! `circuitlab cache`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use circuitlab::cache::{self, CacheConfig, CacheJob, Cost, Estimate, JobShare, Summary};
use circuitlab::text::TextRange;

use super::{Context, cache_stats, model};
use crate::args::{CacheArgs, CacheCommand, CacheFolderArgs, CacheWriteArgs};
use crate::output::{Table, WithHint, human};

pub(super) fn run(args: &CacheArgs, context: &Context) -> anyhow::Result<()> {
    match args {
        CacheArgs::Check(CacheCommand::Verify(folder)) => verify(folder, context),
        CacheArgs::Check(CacheCommand::Status(folder)) => status(folder, context),
        CacheArgs::Check(CacheCommand::Stats(stats)) => cache_stats::run(stats, context),
        CacheArgs::Write(write) if write.dry_run => {
            let estimate = with_job(write, context, |job| Ok(cache::estimate(job, &context.bars)?))?;
            context.print(&estimate, || costs(&estimate))
        }
        CacheArgs::Write(write) => {
            let summary = build(write, context)?;
            context.print(&summary, || line(&summary, write))
        }
    }
}

/// Writes this job's part of a cache.
pub(super) fn build(args: &CacheWriteArgs, context: &Context) -> anyhow::Result<Summary> {
    with_job(args, context, |job| Ok(cache::build(job, &context.bars)?))
}

/// Opens what a job needs, and does something with it.
fn with_job<T>(args: &CacheWriteArgs, context: &Context, work: impl FnOnce(&CacheJob<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let share: JobShare = args.job.parse().context("--job")?;
    let config = config(args)?;
    let (model, folder) = model::open(&args.place, context)?;
    let job = CacheJob {
        registry: &context.registry,
        model: model.as_ref(),
        tokenizer: &folder,
        text: &args.text.paths,
        out: &args.out,
        config: &config,
        share,
        resume: args.resume,
    };
    work(&job)
}

/// What a cache would cost, as a table.
fn costs(estimate: &Estimate) -> String {
    let row = |name: String, cost: &Cost| {
        let hours = format!("{:.2}", cost.hours);
        [name, human::whole(cost.rows), human::bytes(cost.bytes), human::bytes(cost.raw_bytes), hours]
    };
    let mut table = Table::new(["", "rows", "on disk", "as f32", "hours"]);
    if estimate.jobs > 1 {
        table.row(row(format!("job {}/{}", estimate.job, estimate.jobs), &estimate.this_job));
    }
    let all = if estimate.jobs > 1 { format!("all {} jobs, if they are like it", estimate.jobs) } else { "the cache".to_owned() };
    table.row(row(all, &estimate.all_jobs));
    let skipped = match estimate.skipped_documents {
        0 => String::new(),
        count => format!("; {} bad lines would be left out", human::whole(count)),
    };
    format!(
        "{table}\nmeasured on {} contexts, {} rows: {:.0} rows a second on this machine{skipped}; nothing was written",
        estimate.sample_contexts,
        human::whole(estimate.sample_rows as u64),
        estimate.rows_per_second
    )
}

/// The plugin libraries that the settings name.
pub(super) fn plugin_paths(args: &CacheArgs) -> anyhow::Result<Vec<PathBuf>> {
    match args {
        CacheArgs::Write(write) => Ok(config(write)?.plugins.paths),
        CacheArgs::Check(_) => Ok(Vec::new()),
    }
}

/// The settings: defaults, the file, `--set`, and last the flags.
fn config(args: &CacheWriteArgs) -> anyhow::Result<CacheConfig> {
    let context = args.context.map(|context| context.to_string());
    if let Some(range) = &args.text.range {
        range.parse::<TextRange>().context("--range")?;
    }
    let weights = args.weights.as_deref().map(weights).transpose()?;
    // As TOML text, or a field that is called `5` would be read as a number.
    let text_field = args.text.text_field.as_ref().map(|field| serde_json::json!(field).to_string());
    let skip = args.text.skip_bad_lines.then(|| true.to_string());
    let flags = [
        ("context", &context),
        ("codec", &args.codec),
        ("range", &args.text.range),
        ("weights", &weights),
        ("text_field", &text_field),
        ("skip_bad_lines", &skip),
    ];
    let named = flags.into_iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}")));
    let sets: Vec<String> = named.chain(args.set.iter().cloned()).collect();
    let presets = serde_json::to_value(CacheConfig::default())?;
    Ok(circuitlab::config::resolve(args.config.as_deref(), &sets, presets)?)
}

/// `0.7,0.3` as a list.
fn weights(text: &str) -> anyhow::Result<String> {
    let wrong = || anyhow!("--weights `{text}`: expected numbers with commas between, such as `0.7,0.3`");
    let numbers: Vec<f64> = text.split(',').map(|number| number.trim().parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
    if numbers.iter().all(|number| number.is_finite()) { Ok(format!("{numbers:?}")) } else { Err(wrong()) }
}

fn line(summary: &Summary, args: &CacheWriteArgs) -> String {
    let left_out = |count: u64, what: &str| match count {
        0 => String::new(),
        count => format!("; {} {what} were left out", human::whole(count)),
    };
    let left_out = left_out(summary.skipped_documents, "bad lines") + &left_out(summary.masked_rows, "rows of outstanding norm");
    if summary.chunks == 0 {
        return format!("{}: no document fell to job {}, so its part is complete without a row{left_out}", args.out.display(), args.job);
    }
    let what = if summary.was_complete() { "was complete already (`cache verify` reads every byte):" } else { "holds" };
    format!(
        "{} {what} {} rows in {} chunks, {} ({:.1} times smaller than f32){left_out}",
        args.out.display(),
        human::whole(summary.rows),
        summary.chunks,
        human::bytes(summary.bytes),
        summary.raw_bytes as f64 / summary.bytes.max(1) as f64
    )
}

fn verify(args: &CacheFolderArgs, context: &Context) -> anyhow::Result<()> {
    let damages = cache::verify(&args.cache, &context.bars)?;
    let complete = damages.is_empty() && cache::status(&args.cache)?.complete;
    context.print(&damages, || {
        let lines: Vec<String> = damages.iter().map(|damage| format!("{}: {}", damage.file.display(), damage.what)).collect();
        match (lines.is_empty(), complete) {
            (true, true) => format!("{}: every chunk is whole", args.cache.display()),
            (true, false) => format!("{}: every chunk that is there is whole; others are still to be written", args.cache.display()),
            (false, _) => lines.join("\n"),
        }
    })?;
    if damages.is_empty() {
        return Ok(());
    }
    let error = anyhow!("`{}` is damaged in {} places", args.cache.display(), damages.len());
    Err(error)
        .hint("delete the chunks that are damaged and run their jobs again with `--resume`; a part without its manifest is written anew")
}

fn status(args: &CacheFolderArgs, context: &Context) -> anyhow::Result<()> {
    let status = cache::status(&args.cache)?;
    context.print(&status, || {
        let of = &status.identity;
        let mut table = Table::new(["cache", &args.cache.display().to_string()]);
        table.row(["model", &format!("{} ({}), {} layers of width {}", of.model, of.family, of.layers, of.d_model)]);
        table.row(["hooks", &format!("{} -> {}", of.input_hook, of.output_hook)]);
        table.row(["codec", &of.codec.to_string()]);
        table.row(["rows", &format!("{} of {}", human::whole(status.rows), human::whole(status.planned_rows))]);
        table.row(["on disk", &human::bytes(status.bytes)]);
        let masked: u64 = status.parts.iter().map(|part| part.masked_rows).sum();
        if masked > 0 {
            table.row(["left out", &format!("{} rows of outstanding norm", human::whole(masked))]);
        }
        for part in &status.parts {
            table.row([format!("job {}/{}", part.job, of.jobs), format!("{} of {} chunks", part.chunks, part.planned_chunks)]);
        }
        if !status.missing_jobs.is_empty() {
            table.row(["", "the rows of jobs that were not begun are not known yet"]);
        }
        for job in &status.missing_jobs {
            table.row([format!("job {job}/{}", of.jobs), "not begun".to_owned()]);
        }
        table.row(["complete", if status.complete { "yes" } else { "no" }]);
        table.to_string()
    })
}
