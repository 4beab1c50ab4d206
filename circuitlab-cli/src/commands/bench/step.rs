//! `circuitlab bench step`.

use anyhow::{Context as _, ensure};
use circuitlab::recording::{Recording, ReplayedStep, optimiser};
use circuitlab::train::Adam;
use circuitlab_core::{Batch, Parameters, PenaltyWeights, Spec, StageCost};
use serde_json::{Value, json};
use tch::Kind;

use super::floor::Floor;
use super::samples::{Samples, rotated, spec};
use crate::args::BenchStepArgs;
use crate::commands::Context;
use crate::output::Table;

/// One transcoder with one activation, on parameters of its own.
struct Case {
    recording: Recording,
    params: Parameters,
    adam: Adam,
    batch: Batch,
    steps: Vec<ReplayedStep>,
}

pub(super) fn run(args: &BenchStepArgs, context: &Context) -> anyhow::Result<()> {
    ensure!(args.steps > 0, "--steps: expected at least 1, got 0");
    let compared = args.transcoder.len().max(1) * args.activation.len().max(1);
    ensure!(!args.stages || compared == 1, "--stages: expected one transcoder and one activation, got {compared} pairs");
    circuitlab::device::set_threads(args.threads)?;
    let _no_grad = tch::no_grad_guard();
    let mut cases = cases(args, context)?;
    let first = &cases[0].recording;
    let penalty = PenaltyWeights { lambda: first.scalar("lambda")?, mu: first.scalar("mu")?, tanh_scale: 4.0 };
    let learning_rate = first.scalar("lr")?;
    let mut floor = args.stages.then(|| Floor::new(&cases[0].params, &cases[0].batch));
    for round in 0..=args.steps {
        if let Some(floor) = &mut floor {
            floor.measure();
        }
        for place in rotated(cases.len(), round) {
            let case = &mut cases[place];
            let step = case.recording.replay(&mut case.params, &mut case.adam, &case.batch, penalty, learning_rate, false);
            case.steps.push(step.with_context(|| format!("cannot step on `{}`", args.input.display()))?);
        }
    }
    match (&cases[..], floor) {
        ([only], Some(floor)) => only.print_stages(&floor, context),
        ([only], None) => context.print(&only.figures(), || only.lines()),
        _ => print_all(&cases, context),
    }
}

/// Every transcoder with every activation.
fn cases(args: &BenchStepArgs, context: &Context) -> anyhow::Result<Vec<Case>> {
    let mut transcoders = specs("transcoder", &args.transcoder)?;
    if args.dense {
        for transcoder in &mut transcoders {
            let named = transcoder.take().map_or_else(|| Recording::transcoder(&args.input), Ok)?;
            *transcoder = Some(named.with("step", "dense"));
        }
    }
    let activations = specs("activation", &args.activation)?;
    let pairs = transcoders.iter().flat_map(|transcoder| activations.iter().map(move |activation| (transcoder, activation)));
    pairs
        .map(|(transcoder, activation)| {
            let recording = Recording::open(&context.registry, &args.input, Kind::Float, transcoder.as_ref(), activation.as_ref())?;
            let params = recording.parameters("init")?;
            let (adam, batch) = (optimiser(&params), recording.batch(0)?);
            Ok(Case { recording, params, adam, batch, steps: Vec::new() })
        })
        .collect()
}

/// What a flag names; nothing, once, where it was not given.
fn specs(flag: &str, given: &[String]) -> anyhow::Result<Vec<Option<Spec>>> {
    if given.is_empty() {
        return Ok(vec![None]);
    }
    given.iter().map(|text| spec(flag, text).map(Some)).collect()
}

impl Case {
    /// The first step is not counted.
    fn median(&self) -> f64 {
        Samples::new(self.steps.iter().skip(1).map(|step| step.elapsed.as_secs_f64())).median()
    }

    fn figures(&self) -> Value {
        let row = |step: &ReplayedStep| json!({"mse": step.mse, "sparsity": step.sparsity, "preact": step.preact, "l0": step.l0, "seconds": step.elapsed.as_secs_f64()});
        json!({"steps": self.steps.iter().map(row).collect::<Vec<_>>(), "median_seconds": self.median()})
    }

    /// What other programs that measure the same step print too, and scripts read.
    fn lines(&self) -> String {
        let mut lines: Vec<String> = self.steps.iter().enumerate().map(|(index, step)| line(index, step)).collect();
        lines.push(format!("median_seconds {}", self.median()));
        lines.join("\n")
    }
}

impl Case {
    /// Medians over the steps that count, of each stage.
    fn stages(&self) -> Vec<Value> {
        let counted = &self.steps[1.min(self.steps.len())..];
        let stages = self.steps.first().map_or(&[][..], |step| &step.stages[..]);
        let figures = |(place, stage): (usize, &StageCost)| {
            let of = |get: fn(&StageCost) -> f64| Samples::new(counted.iter().filter_map(|step| step.stages.get(place)).map(get));
            let seconds = of(|stage| stage.seconds);
            let [flop, bytes] = [of(|stage| stage.flop), of(|stage| stage.bytes)].map(|amount| amount.median() / 1e9 / seconds.median());
            json!({
                "stage": stage.name, "seconds": seconds.median(), "interquartile_range": seconds.interquartile_range(),
                "gflop_per_s": flop, "gb_per_s": bytes,
            })
        };
        stages.iter().enumerate().map(figures).collect()
    }

    fn print_stages(&self, floor: &Floor, context: &Context) -> anyhow::Result<()> {
        let mut whole = self.figures();
        let (encoder, bandwidth) = (floor.encoder_s(), floor.bytes_per_s());
        let spread = Samples::new(self.steps.iter().skip(1).map(|step| step.elapsed.as_secs_f64())).interquartile_range();
        whole["interquartile_range"] = json!(spread);
        whole["stages"] = json!(self.stages());
        whole["encoder_product_seconds"] = json!(encoder.median());
        whole["copy_gb_per_s"] = json!(bandwidth.median() / 1e9);
        whole["floor_seconds"] = json!(floor.seconds());
        whole["to_encoder_product"] = json!(self.median() / encoder.median());
        whole["to_floor"] = json!(self.median() / floor.seconds());
        context.print(&whole, || {
            let mut table = Table::new(["stage", "ms", "spread", "GFLOP/s", "GB/s"]);
            for stage in self.stages() {
                let number = |key: &str, scale: f64, digits| format!("{:.digits$}", stage[key].as_f64().unwrap_or(f64::NAN) * scale);
                table.row([
                    stage["stage"].as_str().unwrap_or_default().to_owned(),
                    number("seconds", 1e3, 1),
                    number("interquartile_range", 1e3, 1),
                    number("gflop_per_s", 1.0, 1),
                    number("gb_per_s", 1.0, 1),
                ]);
            }
            format!(
                "{table}\n{}\nspread is the interquartile range, {:.4} s of the whole; the encoder's products alone take {:.4} s (the step {:.2} times \
                 as long), a copy moves {:.1} GB/s\nfloor {:.4} s: these products and 28 bytes a parameter; the step takes {:.2} times as long",
                self.lines(),
                spread,
                encoder.median(),
                self.median() / encoder.median(),
                bandwidth.median() / 1e9,
                floor.seconds(),
                self.median() / floor.seconds()
            )
        })
    }
}

fn line(index: usize, step: &ReplayedStep) -> String {
    format!(
        "step {index} mse {:.6} sparse {:.6} preact {:.6} l0 {:.3} seconds {:.4}",
        step.mse,
        step.sparsity,
        step.preact,
        step.l0,
        step.elapsed.as_secs_f64()
    )
}

fn print_all(cases: &[Case], context: &Context) -> anyhow::Result<()> {
    let first = cases[0].median();
    let rows: Vec<Value> = cases
        .iter()
        .map(|case| {
            let mut row = case.figures();
            let [transcoder, activation] = case.recording.names();
            row["transcoder"] = json!(transcoder);
            row["activation"] = json!(activation);
            row["to_first"] = json!(case.median() / first);
            row
        })
        .collect();
    context.print(&json!({"cases": rows}), || {
        let mut table = Table::new(["transcoder", "activation", "last mse", "last l0", "median_seconds", "to first"]);
        for case in cases {
            let [transcoder, activation] = case.recording.names().clone();
            let last = case.steps.last().map_or([f64::NAN; 2], |step| [step.mse, step.l0]);
            let [mse, l0] = [format!("{:.6}", last[0]), format!("{:.3}", last[1])];
            table.row([transcoder, activation, mse, l0, format!("{:.4}", case.median()), format!("{:.3}", case.median() / first)]);
        }
        table.to_string()
    })
}
