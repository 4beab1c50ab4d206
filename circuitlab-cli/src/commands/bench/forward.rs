//! `circuitlab bench forward`.

use std::time::Instant;

use anyhow::ensure;
use circuitlab::model::Capture;
use circuitlab_core::hooks::NoHooks;
use circuitlab_core::random::Stream;
use circuitlab_core::{BlockHook, HookPoint, LanguageModel};
use serde_json::json;
use tch::Tensor;

use super::samples::Samples;
use crate::args::BenchForwardArgs;
use crate::commands::{Context, model};

pub(super) fn run(args: &BenchForwardArgs, context: &Context) -> anyhow::Result<()> {
    ensure!(args.rounds > 0 && args.batch > 0 && args.positions > 0, "--rounds, --batch, --positions: expected at least 1 each");
    circuitlab::device::set_threads(args.threads)?;
    let (model, _) = model::open(&args.place, context)?;
    let tokens = tokens(model.as_ref(), args)?;
    let mut seconds = Vec::with_capacity(args.rounds);
    for round in 0..=args.rounds {
        let started = Instant::now();
        tch::no_grad(|| pass(model.as_ref(), &tokens, args.logits))?;
        if round > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    let count = (args.batch * args.positions) as f64;
    let rates = Samples::new(seconds.iter().map(|seconds| count / seconds));
    let figures = json!({
        "tokens_per_second": rates.median(), "interquartile_range": rates.interquartile_range(), "seconds": seconds,
        "batch": args.batch, "positions": args.positions, "threads": tch::get_num_threads(),
    });
    context.print(&figures, || {
        format!(
            "{:.0} tokens/s, the median of {} passes; interquartile range {:.0}",
            rates.median(),
            args.rounds,
            rates.interquartile_range()
        )
    })
}

/// Tokens drawn evenly from the vocabulary.
fn tokens(model: &dyn LanguageModel, args: &BenchForwardArgs) -> anyhow::Result<Tensor> {
    let mut stream = Stream::new(0, "tokens", 0);
    let vocabulary = model.info().vocabulary as f64;
    let ids: Vec<i64> = (0..args.batch * args.positions).map(|_| (stream.uniform() * vocabulary) as i64).collect();
    Ok(Tensor::from_slice(&ids).f_view([args.batch as i64, args.positions as i64])?.f_to_device(model.placement().0)?)
}

fn pass(model: &dyn LanguageModel, tokens: &Tensor, logits: bool) -> anyhow::Result<()> {
    if logits {
        let logits = model.forward(tokens, &mut NoHooks)?;
        ensure!(logits.is_some(), "the model gave no logits");
        return Ok(());
    }
    let sides = [BlockHook::MlpIn, BlockHook::MlpOut];
    let points = (0..model.info().layers).flat_map(|layer| sides.map(|hook| HookPoint::block(layer, hook)));
    let mut capture = Capture::new(points).stopping();
    model.forward(tokens, &mut capture)?;
    // A device runs behind: the last value is there when its first number is.
    let last = capture.take(HookPoint::block(model.info().layers - 1, BlockHook::MlpOut))?;
    ensure!(last.f_flatten(0, -1)?.f_double_value(&[0])?.is_finite(), "the model's outputs are not finite");
    Ok(())
}
