//! `circuitlab eval`.

mod prompts;

use std::path::Path;

use anyhow::Context as _;
use circuitlab::eval::{EvalText, Report, SpliceReport, evaluate};
use circuitlab::saved::SavedTranscoder;
use circuitlab::text::{PackOptions, TextRange, Tokenizer, pack, resolve, sources_with};
use circuitlab_core::LanguageModel;
use circuitlab_core::config::FloatKind;

use super::{Context, model};
use crate::args::EvalArgs;
use crate::output::{Table, human};

pub(super) fn run(args: &EvalArgs, context: &Context) -> anyhow::Result<()> {
    if let Some(file) = &args.prompts.faithfulness {
        let report = prompts::report(file, args, context)?;
        return context.print(&report, || prompts::text(&report));
    }
    let report = report(args, context)?;
    context.print(&report, || text(&report))
}

/// Evaluates; the demo prints the result its own way.
pub(super) fn report(args: &EvalArgs, context: &Context) -> anyhow::Result<Report> {
    let (model, folder) = model::open(&args.place, context)?;
    let device = args.place.device.parse()?;
    let [clt] = &args.clt[..] else { anyhow::bail!("several `--clt` are compared with `--faithfulness PROMPTS`; a text takes one") };
    let saved = SavedTranscoder::open(&context.registry, clt, device, FloatKind::F32)?;
    saved.check_model(model.info())?;
    let text = eval_text(args, model.as_ref(), &folder, context)?;
    Ok(evaluate(&saved, model.as_ref(), &text, &context.bars)?)
}

pub(super) fn text(report: &Report) -> String {
    let mut layers = Table::new(["layer", "EV", "NMSE", "L0", "dead", "dense", "CE spliced", "KL", "CE recovered (zero)", "(mean)"]);
    // Where an ablation hardly hurts there is nothing to recover, and a share of it says nothing.
    let own = report.faithfulness.model_cross_entropy;
    let share =
        |recovered: f64, ablated: f64| if ablated - own < 0.01 * own { "-".to_owned() } else { format!("{:.1} %", 100.0 * recovered) };
    let row = |name: String, figures: [f64; 3], counts: [usize; 2], splice: &SpliceReport| {
        let [ev, nmse, l0] = figures;
        vec![
            name,
            format!("{ev:.4}"),
            format!("{nmse:.4}"),
            format!("{l0:.2}"),
            counts[0].to_string(),
            counts[1].to_string(),
            format!("{:.4}", splice.spliced.cross_entropy),
            format!("{:.4}", splice.spliced.kl),
            share(splice.recovered_from_zero, splice.zero_ablation.cross_entropy),
            share(splice.recovered_from_mean, splice.mean_ablation.cross_entropy),
        ]
    };
    for (index, (layer, splice)) in report.layers.iter().zip(&report.faithfulness.layers).enumerate() {
        let figures = [layer.explained_variance, layer.normalised_mse, layer.l0];
        layers.row(row(index.to_string(), figures, [layer.dead_features, layer.dense_features], splice));
    }
    let figures = [report.explained_variance, report.normalised_mse, report.l0];
    layers.row(row("all".to_owned(), figures, [report.dead_features, report.dense_features], &report.faithfulness.all));
    format!(
        "{} rows, {} predicted tokens; cross-entropy of the model {:.4}, nats per token\n\n{layers}\n\
         dead features fired on none of these rows, dense ones on more than a tenth\n\n{}",
        human::whole(report.rows),
        human::whole(report.faithfulness.tokens),
        report.faithfulness.model_cross_entropy,
        histogram(report)
    )
}

/// How many features fire on which share of the rows, layer by layer.
fn histogram(report: &Report) -> String {
    let bins = report.layers.first().map(|layer| layer.frequency_histogram.as_slice()).unwrap_or_default();
    let heads = bins.iter().map(|bin| if bin.from == 0.0 { format!("<{:.0e}", bin.to) } else { format!("{:.0e}", bin.from) });
    let mut table = Table::new(std::iter::once("features firing from".to_owned()).chain(heads));
    for (index, layer) in report.layers.iter().enumerate() {
        let counts = layer.frequency_histogram.iter().map(|bin| bin.features.to_string());
        table.row(std::iter::once(format!("layer {index}")).chain(counts));
    }
    table.to_string()
}

/// The text in contexts that the model can take.
fn eval_text(args: &EvalArgs, model: &dyn LanguageModel, folder: &Path, context: &Context) -> anyhow::Result<EvalText> {
    let range: TextRange = args.text.range.as_deref().map(str::parse).transpose().context("--range")?.unwrap_or_default();
    let options = PackOptions { range, ..PackOptions::new(args.context) };
    options.check(model.info()).context("--context")?;
    let sources = sources_with(&context.registry, &[], args.text.text_field.as_deref(), args.text.skip_bad_lines)?;
    let files = resolve(&context.registry, &sources, &args.text.paths, &context.bars)?;
    let tokenizer = Tokenizer::load_if_there(folder, model.info())?;
    let packed = pack(&files, &tokenizer, model.info(), &options, &context.bars)?;
    Ok(EvalText::new(&packed, &tokenizer, args.max_contexts, args.batch_contexts))
}
