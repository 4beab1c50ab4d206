//! `circuitlab bench cache`.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use circuitlab::cache::{Cache, Loader, LoaderOptions, SamplerState, Stages, stages};
use serde_json::{Value, json};

use super::samples::Samples;
use crate::args::BenchCacheArgs;
use crate::commands::Context;
use crate::output::{Table, human};

/// Gigabytes of decoded 32-bit floats per second, round by round.
struct Stage {
    name: &'static str,
    gb_per_s: Samples,
}

pub(super) fn run(args: &BenchCacheArgs, context: &Context) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds: expected at least 1, got 0");
    let cache = Arc::new(Cache::open(&args.cache, &context.registry)?);
    let chunks = cache.chunk_rows().len();
    ensure!(chunks > 0, "`{}` has no rows to read", args.cache.display());
    let rounds = (0..=args.rounds).map(|round| stages(&cache, round % chunks)).skip(1).collect::<Result<Vec<_>, _>>()?;
    let mut figures = alone(&rounds);
    let (wall, per_core) = loader(args, &cache)?;
    figures.push(Stage { name: "loader, all threads", gb_per_s: wall });
    figures.extend(per_core.map(|gb_per_s| Stage { name: "loader, per core", gb_per_s }));
    let sum = |of: fn(&Stages) -> u64| rounds.iter().map(of).sum::<u64>() as f64;
    let per_value = |of: fn(&Stages) -> u64| 4.0 * sum(of) / sum(|round| round.raw_bytes);
    let (stored, unpacked) = (per_value(|round| round.stored_bytes), per_value(|round| round.unpacked_bytes));
    // Stored bytes are read; where they are packed, unpacked ones are written and read; values are written.
    let floor = stored + if cache.codec().packs() { 2.0 * unpacked } else { 0.0 } + 4.0;
    let whole = json!({
        "codec": cache.codec().spec().to_string(), "rows": cache.rows(), "rounds": args.rounds, "stored_bytes_per_value": stored,
        "moved_bytes_per_value": floor,
        "stages": figures.iter().map(|stage| json!({
            "stage": stage.name, "gb_per_s": stage.gb_per_s.median(), "interquartile_range": stage.gb_per_s.interquartile_range(),
        })).collect::<Vec<Value>>(),
    });
    context.print(&whole, || {
        let mut table = Table::new(["stage", "GB/s", "spread"]);
        for stage in &figures {
            let numbers = [stage.gb_per_s.median(), stage.gb_per_s.interquartile_range()].map(|number| format!("{number:.2}"));
            table.row([stage.name.to_owned(), numbers[0].clone(), numbers[1].clone()]);
        }
        format!(
            "{table}\n`{}`, {} rows, {} on disk; GB of decoded 32-bit floats, medians of {} rounds; spread is the interquartile range\n\
             at least {floor:.2} bytes are moved for each value: {stored:.2} read, 4 written{}",
            cache.codec().spec(),
            human::whole(cache.rows()),
            human::bytes(cache.bytes()),
            args.rounds,
            if cache.codec().packs() { format!(", {unpacked:.2} unpacked and read again") } else { String::new() }
        )
    })
}

/// Each stage by itself, on one thread.
fn alone(rounds: &[Stages]) -> Vec<Stage> {
    let stage = |name, seconds: &dyn Fn(&Stages) -> f64| Stage {
        name,
        gb_per_s: Samples::new(rounds.iter().map(|round| round.raw_bytes as f64 / 1e9 / seconds(round).max(1e-12))),
    };
    let mut all = vec![
        stage("read", &|round| round.read_s),
        stage("checksum (CRC-32C)", &|round| round.checksum_s),
        stage("digest (SHA-256, `verify` only)", &|round| round.digest_s),
        stage("unpack", &|round| round.unpack_s),
        stage("decode blocks", &|round| round.decode_s),
    ];
    if rounds.iter().all(|round| round.decode_rows_s.is_some()) {
        let rows = |round: &Stages| round.decode_rows_s.unwrap_or(round.decode_s);
        all.push(stage("decode shuffled rows", &rows));
        all.push(stage("unpack and decode rows", &|round| round.unpack_s + rows(round)));
    } else {
        all.push(stage("unpack and decode blocks", &|round| round.unpack_s + round.decode_s));
    }
    all
}

/// The whole loader: by the clock, and by the time that all threads together were at work, where the system tells.
fn loader(args: &BenchCacheArgs, cache: &Arc<Cache>) -> anyhow::Result<(Samples, Option<Samples>)> {
    let options = LoaderOptions { window_chunks: args.window_chunks, ..LoaderOptions::new(cache, args.batch_rows) };
    let mut loader = Loader::start(Arc::clone(cache), SamplerState::default(), &options)?;
    let identity = cache.identity();
    let batch_bytes = (args.batch_rows * identity.layers * identity.d_model * 2 * 4) as f64;
    // An epoch a round, so that each round has as many windows to read as batches to fill; or a gigabyte of a small cache.
    let rows = cache.rows().max((1e9 / batch_bytes * args.batch_rows as f64) as u64);
    let batches = rows.div_ceil(args.batch_rows.max(1) as u64);
    let (mut wall, mut work) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let (started, before) = (Instant::now(), work_seconds());
        for _ in 0..batches {
            let loaded = loader.next()?;
            loader.give_back(loaded.batch);
        }
        let gigabytes = batches as f64 * batch_bytes / 1e9;
        if round > 0 {
            wall.push(gigabytes / started.elapsed().as_secs_f64().max(1e-12));
            work.extend(before.zip(work_seconds()).map(|(before, after)| gigabytes / (after - before).max(1e-12)));
        }
    }
    let per_core = (work.len() == wall.len()).then(|| Samples::new(work));
    Ok((Samples::new(wall), per_core))
}

/// Seconds that the threads of this process were on a core, as Linux counts them.
fn work_seconds() -> Option<f64> {
    let threads = fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    Some(nanoseconds.sum::<f64>() / 1e9).filter(|seconds| *seconds > 0.0)
}
