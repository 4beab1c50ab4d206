//! `circuitlab eval --faithfulness`.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use circuitlab::eval::{Agreement, Means, Perturbed, PromptOptions, PromptReport, TranscoderReport, evaluate_prompts};
use circuitlab::graph::AttributeOptions;
use circuitlab::saved::SavedTranscoder;
use circuitlab::text::Tokenizer;
use circuitlab_core::config::FloatKind;

use crate::args::EvalArgs;
use crate::commands::{Context, model};
use crate::output::{Table, human};

/// Longest piece of a prompt that a table shows, in characters.
const SHOWN: usize = 32;

pub(super) fn report(file: &Path, args: &EvalArgs, context: &Context) -> anyhow::Result<PromptReport> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let (model, folder) = model::open(&args.place, context)?;
    let tokenizer = Tokenizer::load(&folder, model.info())?;
    let prompts = circuitlab::graph::prompts(&text, !args.prompts.no_bos, &tokenizer, model.info());
    let prompts = prompts.with_context(|| format!("`{}`", file.display()))?;
    let device = args.place.device.parse()?;
    let open = |clt| SavedTranscoder::open(&context.registry, clt, device, FloatKind::F32);
    let transcoders = args.clt.iter().map(|clt| open(clt)).collect::<Result<Vec<_>, _>>()?;
    let attribute = AttributeOptions { max_feature_nodes: Some(args.prompts.max_feature_nodes), ..AttributeOptions::default() };
    let options = PromptOptions { attribute, samples: args.prompts.perturbed_features, seed: args.prompts.seed };
    Ok(evaluate_prompts(&transcoders, model.as_ref(), Some(&tokenizer), &prompts, &options, &context.bars)?)
}

pub(super) fn text(report: &PromptReport) -> String {
    let named =
        |(place, one): (usize, &TranscoderReport)| format!("{} is `{}` ({})", name(place), one.transcoder, one.kind.replace('_', "-"));
    let legend: Vec<String> = report.transcoders.iter().enumerate().map(named).collect();
    format!(
        "{}\n\n{}\n\n{}\n\nChanges of features that were doubled and ablated, up to {} on each prompt, as predicted by the graph and as measured:\n\
         with everything held but direct effects, and with attention alone held, predicted along all paths.\n\n{}",
        legend.join("\n"),
        scores(report),
        "CE: nats per predicted token; agreement: share of positions at which the model finds the same token likeliest with all MLPs replaced",
        human::whole(report.samples as u64),
        changes(report)
    )
}

/// What transcoders are called in tables.
fn name(place: usize) -> String {
    format!("#{}", place + 1)
}

/// A row for each prompt and transcoder, and the means.
fn scores(report: &PromptReport) -> Table {
    let mut table =
        Table::new(["prompt", "", "active", "replacement", "completeness", "CE", "CE spliced", "KL", "agreement", "last token"]);
    let nats = |nats: Option<f64>| nats.map_or_else(|| "-".to_owned(), |nats| format!("{nats:.4}"));
    let share = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut row = |prompt: String, place: usize, active: String, of: &Means, last: String| {
        let figures =
            [format!("{:.4}", of.replacement), format!("{:.4}", of.completeness), nats(of.model_cross_entropy), nats(of.cross_entropy)];
        let rest = [format!("{:.4}", of.kl), share(of.agreement), last];
        table.row([prompt, name(place), active].into_iter().chain(figures).chain(rest));
    };
    let prompts = report.transcoders.first().map_or(0, |first| first.prompts.len());
    for prompt in 0..prompts {
        for (place, one) in report.transcoders.iter().enumerate() {
            let scores = &one.prompts[prompt];
            let last = if scores.spliced.last_agrees { "same" } else { "other" };
            let figures = Means::of(std::slice::from_ref(scores));
            row(shortened(&scores.prompt), place, scores.active_features.to_string(), &figures, last.to_owned());
        }
    }
    for (place, one) in report.transcoders.iter().enumerate() {
        row("mean".to_owned(), place, String::new(), &one.mean, share(one.mean.last_agrees));
    }
    table
}

/// A row for each distance and transcoder.
fn changes(report: &PromptReport) -> Table {
    let mut table = Table::new([
        "layers apart",
        "",
        "changes",
        "direct: correlation",
        "slope",
        "error",
        "attention held: correlation",
        "slope",
        "error",
    ]);
    let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.4}"));
    let figures = |of: &Agreement| [of.correlation, of.slope, of.relative_error].map(number);
    let mut rows = |what: String, of: &dyn Fn(&Perturbed) -> Option<Agreement>| {
        for (place, one) in report.transcoders.iter().enumerate() {
            if let (Some(direct), Some(held)) = (of(&one.direct), of(&one.attention_held)) {
                let cells = [what.clone(), name(place), human::whole(direct.pairs)];
                table.row(cells.into_iter().chain(figures(&direct)).chain(figures(&held)));
            }
        }
    };
    let most = report.transcoders.iter().map(|one| one.direct.by_distance.len()).max().unwrap_or(0);
    for distance in 0..most {
        rows((distance + 1).to_string(), &|of| of.by_distance.get(distance).copied().filter(|found| found.pairs > 0));
    }
    rows("all".to_owned(), &|of| Some(of.features));
    rows("logits".to_owned(), &|of| Some(of.logits));
    table
}

/// A prompt as its beginning, in quotes.
fn shortened(prompt: &str) -> String {
    let begun: String = prompt.chars().take(SHOWN).collect();
    let rest = if begun.len() < prompt.len() { ".." } else { "" };
    format!("{begun:?}{rest}")
}
