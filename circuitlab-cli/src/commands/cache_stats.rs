//! `circuitlab cache stats`.

use circuitlab::cache::{Cache, Report, ReportOptions, report};
use circuitlab_core::codec::ChainSpec;

use super::Context;
use super::bench::spec;
use crate::args::CacheStatsArgs;
use crate::output::{Table, human};

/// What is compared where nothing is named.
const CODECS: [&str; 5] = ["none", "bf16", "int8", "int8+zstd", "int4+zstd"];

pub(super) fn run(args: &CacheStatsArgs, context: &Context) -> anyhow::Result<()> {
    let cache = Cache::open(&args.cache, &context.registry)?;
    let named = args.codec.iter().map(|text| spec::<ChainSpec>("codec", text)).collect::<anyhow::Result<Vec<_>>>()?;
    let codecs = if named.is_empty() { CODECS.map(ChainSpec::parse).to_vec() } else { named };
    let report = report(&cache, &context.registry, &ReportOptions { codecs, rows: args.rows }, &context.bars)?;
    context.print(&report, || text(&report))
}

fn text(report: &Report) -> String {
    let mut layers = Table::new(["layer", "side", "mean norm", "std", "max abs", "kurtosis"]);
    for layer in &report.layers {
        let numbers = [layer.mean_norm, layer.std, layer.max_abs, layer.kurtosis].map(|number| format!("{number:.4}"));
        layers.row([layer.layer.to_string(), layer.side.to_owned()].into_iter().chain(numbers));
    }
    let mut codecs =
        Table::new(["codec", "bytes/value", "to f32", "NMSE mean", "NMSE worst layer", "NMSE worst row", "encode GB/s", "decode GB/s"]);
    for codec in &report.codecs {
        codecs.row([
            codec.codec.clone(),
            format!("{:.4}", codec.bytes_per_value),
            format!("{:.2}", codec.ratio),
            format!("{:.2e}", codec.mean_nmse),
            format!("{:.2e}", codec.max_nmse),
            format!("{:.2e}", codec.worst_row_nmse),
            format!("{:.2}", codec.encode_gb_per_s),
            format!("{:.2}", codec.decode_gb_per_s),
        ]);
    }
    let kept = if report.codec == "none" {
        String::new()
    } else {
        format!("\nrows are compared as this cache keeps them, after `{}`; one of `none` has the model's own", report.codec)
    };
    format!(
        "stored as `{}`: {:.4} bytes a value, {:.2} times smaller than f32, index included; {} rows, of which {} were looked at\n\n{layers}\n\n{codecs}{kept}",
        report.codec,
        report.bytes_per_value,
        report.ratio,
        human::whole(report.rows),
        human::whole(report.sampled_rows)
    )
}
