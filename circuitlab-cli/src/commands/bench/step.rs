//! `circuitlab bench step`.

use anyhow::{Context as _, ensure};
use circuitlab::recording::{Recording, ReplayedStep, optimiser};
use circuitlab::train::Adam;
use circuitlab_core::{Batch, Parameters, PenaltyWeights, Spec};
use serde_json::{Value, json};
use tch::Kind;

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
    circuitlab::device::set_threads(args.threads)?;
    let _no_grad = tch::no_grad_guard();
    let mut cases = cases(args, context)?;
    let first = &cases[0].recording;
    let penalty = PenaltyWeights { lambda: first.scalar("lambda")?, mu: first.scalar("mu")?, tanh_scale: 4.0 };
    let learning_rate = first.scalar("lr")?;
    for round in 0..=args.steps {
        for place in rotated(cases.len(), round) {
            let case = &mut cases[place];
            let step = case.recording.replay(&mut case.params, &mut case.adam, &case.batch, penalty, learning_rate, false);
            case.steps.push(step.with_context(|| format!("cannot step on `{}`", args.input.display()))?);
        }
    }
    match &cases[..] {
        [only] => context.print(&only.figures(), || only.lines()),
        _ => print_all(&cases, context),
    }
}

/// Every transcoder with every activation.
fn cases(args: &BenchStepArgs, context: &Context) -> anyhow::Result<Vec<Case>> {
    let transcoders = specs("transcoder", &args.transcoder)?;
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
