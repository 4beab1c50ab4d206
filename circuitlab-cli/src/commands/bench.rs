//! `circuitlab bench`.

use anyhow::{Context as _, ensure};
use circuitlab::recording::{Recording, ReplayedStep, optimiser};
use circuitlab_core::PenaltyWeights;
use serde_json::json;
use tch::Kind;

use super::Context;
use crate::args::{BenchCommand, BenchStepArgs};

pub(super) fn run(command: &BenchCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        BenchCommand::Step(args) => step(args, context),
    }
}

fn step(args: &BenchStepArgs, context: &Context) -> anyhow::Result<()> {
    ensure!(args.steps > 0, "--steps: expected at least 1, got 0");
    circuitlab::device::set_threads(args.threads)?;
    let _no_grad = tch::no_grad_guard();
    let open = |bandwidth| Recording::open(&context.registry, &args.input, Kind::Float, bandwidth);
    let bandwidth = open(1.0)?.scalar("bandwidth")?;
    let mut recording = open(bandwidth)?;
    let penalty = PenaltyWeights { lambda: recording.scalar("lambda")?, mu: recording.scalar("mu")?, tanh_scale: 4.0 };
    let learning_rate = recording.scalar("lr")?;
    let mut params = recording.parameters("init")?;
    let mut adam = optimiser(&params);
    let batch = recording.batch(0)?;
    let steps = (0..=args.steps)
        .map(|_| recording.replay(&mut params, &mut adam, &batch, penalty, learning_rate, false))
        .collect::<circuitlab::Result<Vec<_>>>()
        .with_context(|| format!("cannot step on `{}`", args.input.display()))?;
    let median = median_seconds(&steps[1..]);
    let rows: Vec<_> = steps
        .iter()
        .map(|step| json!({"mse": step.mse, "sparsity": step.sparsity, "preact": step.preact, "l0": step.l0, "seconds": step.elapsed.as_secs_f64()}))
        .collect();
    context.print(&json!({"steps": rows, "median_seconds": median}), || {
        let mut lines: Vec<String> = steps.iter().enumerate().map(|(index, step)| line(index, step)).collect();
        lines.push(format!("median_seconds {median}"));
        lines.join("\n")
    })
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

fn median_seconds(steps: &[ReplayedStep]) -> f64 {
    let mut seconds: Vec<f64> = steps.iter().map(|step| step.elapsed.as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
