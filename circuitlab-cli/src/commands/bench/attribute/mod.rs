//! `circuitlab bench attribute`.

mod floor;
mod memory;
mod subject;

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use circuitlab::Silent;
use circuitlab::graph::{AttributeOptions, Attribution, Graph, Rows as _};
use serde_json::json;

use super::samples::Samples;
use crate::args::BenchAttributeArgs;
use crate::commands::Context;
use crate::output::human;
use floor::Floor;
use subject::Subject;

/// One measurement.
struct Round {
    seconds: f64,
    floor_s: f64,
    /// Bytes above those of before, where the system tells.
    peak_bytes: Option<u64>,
}

pub(super) fn run(args: &BenchAttributeArgs, context: &Context) -> anyhow::Result<()> {
    let counts = [args.layers, args.d_model, args.features, args.tokens, args.active, args.rounds];
    ensure!(counts.into_iter().all(|count| count > 0), "every number of a benchmark: expected at least 1");
    ensure!(args.tokens > 1, "--tokens: expected at least 2, since the first one has no features");
    circuitlab::device::set_threads(args.threads)?;
    let folder = tempfile::tempdir()?;
    let subject = Subject::new(args, folder.path(), &context.registry)?;
    let mut rounds = Vec::with_capacity(args.rounds);
    let mut found = (0, 0);
    for _ in 0..args.rounds {
        let (round, features, nodes) = round(args, &subject, folder.path())?;
        found = (features, nodes);
        rounds.push(round);
    }
    let seconds = Samples::new(rounds.iter().map(|round| round.seconds));
    let ratios = Samples::new(rounds.iter().map(|round| round.seconds / round.floor_s));
    let peak = rounds.iter().filter_map(|round| round.peak_bytes).max();
    let figures = json!({
        "active_features": found.0, "nodes": found.1, "tokens": args.tokens, "threads": tch::get_num_threads(),
        "median_seconds": seconds.median(), "interquartile_range": seconds.interquartile_range(),
        "products_seconds": rounds.iter().map(|round| round.floor_s).collect::<Vec<_>>(), "seconds": rounds.iter().map(|round| round.seconds).collect::<Vec<_>>(),
        "times_the_products": ratios.median(), "peak_bytes_above_weights": peak,
    });
    context.print(&figures, || {
        format!(
            "{} active features, {} nodes, {} tokens, {} threads\n\
             median_seconds {:.3} (interquartile range {:.3}), {:.2} times its bare matrix products (interquartile range {:.2})\n\
             peak above the loaded weights: {}",
            human::whole(found.0 as u64),
            human::whole(found.1 as u64),
            args.tokens,
            tch::get_num_threads(),
            seconds.median(),
            seconds.interquartile_range(),
            ratios.median(),
            ratios.interquartile_range(),
            peak.map_or_else(|| "not told by this system".to_owned(), human::bytes)
        )
    })
}

fn round(args: &BenchAttributeArgs, subject: &Subject, folder: &Path) -> anyhow::Result<(Round, usize, usize)> {
    let options = AttributeOptions { max_feature_nodes: args.max_feature_nodes, closing: args.closing, ..AttributeOptions::default() };
    let file = folder.join("graph.safetensors");
    let before = memory::reset();
    let began = Instant::now();
    let attribution = Attribution::new(subject.model.as_ref(), &subject.saved, &subject.prompt, None, &options, false)?;
    attribution.write(&file, "bench", &Silent)?;
    let seconds = began.elapsed().as_secs_f64();
    let peak_bytes = before.and_then(|before| memory::peak().map(|peak| peak.saturating_sub(before)));
    drop(attribution);
    let graph = Graph::open(&file)?;
    let floor_s = Floor::new(graph.nodes(), subject.model.info()).seconds()?;
    Ok((Round { seconds, floor_s, peak_bytes }, graph.nodes().active.len(), graph.nodes().count()))
}
