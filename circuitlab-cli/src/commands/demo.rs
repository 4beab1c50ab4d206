//! `circuitlab demo`: cache, train and evaluate on the bundled model and text, then say what came out.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::anyhow;
use circuitlab::eval::Report;
use circuitlab::train::{TrainConfig, TrainRequest};
use circuitlab_core::{Error as CoreError, files};
use serde_json::json;

use super::{Context, cache, eval};
use crate::args::{CacheWriteArgs, DemoArgs, EvalArgs, FaithfulnessArgs, ModelPlace, TextArgs};
use crate::output::{human, stdout};

/// The bundled files, by their place in the demo's folder. They are part of the program, so that it needs nothing beside it.
const BUNDLED: [(&str, &[u8]); 5] = [
    ("model/config.json", include_bytes!("../../../examples/shakespeare/model/config.json")),
    ("model/model.safetensors", include_bytes!("../../../examples/shakespeare/model/model.safetensors")),
    ("model/tokenizer.json", include_bytes!("../../../examples/shakespeare/model/tokenizer.json")),
    ("shakespeare.txt", include_bytes!("../../../examples/shakespeare/shakespeare.txt")),
    (SETTINGS, include_bytes!("../../../examples/shakespeare/train.toml")),
];

/// The settings of the demo's training run.
const SETTINGS: &str = "train.toml";

/// The model was trained on the same 95 %, so the rest is held out from both.
const TRAIN_RANGE: &str = "0..0.95";
const HELD_OUT_RANGE: &str = "0.95..1";

pub(super) fn run(args: &DemoArgs, context: &Context) -> anyhow::Result<()> {
    let started = Instant::now();
    let at = |name: &str| args.out.join(name);
    for (name, content) in BUNDLED {
        check_place(&at(name), content)?;
    }
    for (name, content) in BUNDLED.into_iter().filter(|(name, _)| !at(name).exists()) {
        put(&at(name), content)?;
    }
    say(context, "1/3  caching the MLP inputs and outputs of every layer on the first 95 % of the text")?;
    cache::build(&cache_args(&args.out), context)?;
    say(context, "2/3  training a cross-layer transcoder on them")?;
    train(&args.out, context)?;
    say(context, "3/3  evaluating it on the last 5 %, in place of the model's MLPs")?;
    let eval_args = eval_args(&args.out);
    let report = eval::report(&eval_args, context)?;
    let json = serde_json::to_string_pretty(&report)?;
    files::write_atomic(&at("eval.json"), |out| out.write_all(json.as_bytes()))?;
    let seconds = started.elapsed();
    context.print(&json!({"seconds": seconds.as_secs_f64(), "folder": args.out.display().to_string(), "eval": report}), || {
        format!("\n{}\n\n{}", eval::text(&report), summary(&report, &args.out, &human::duration(seconds)))
    })
}

fn say(context: &Context, line: &str) -> anyhow::Result<()> {
    if context.json {
        return Ok(());
    }
    stdout::print(line)
}

/// Refuses to go on over somebody's own files. The settings of an earlier demo may have been changed, and then count.
fn check_place(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    match fs::read(path) {
        Ok(there) if there != content && !path.ends_with(SETTINGS) => {
            Err(anyhow!("`{}` exists already, and is not the demo's; choose another --out", path.display()))
        }
        _ => Ok(()),
    }
}

fn put(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
    }
    Ok(files::write_atomic(path, |out| out.write_all(content))?)
}

fn place(out: &Path) -> ModelPlace {
    ModelPlace { model: out.join("model"), device: "cpu".to_owned(), dtype: "f32".to_owned(), attention_gate: false }
}

fn text(out: &Path, range: &str) -> TextArgs {
    TextArgs { paths: vec![out.join("shakespeare.txt")], text_field: None, skip_bad_lines: false, range: Some(range.to_owned()) }
}

fn cache_args(out: &Path) -> CacheWriteArgs {
    CacheWriteArgs {
        place: place(out),
        text: text(out, TRAIN_RANGE),
        out: out.join("cache"),
        weights: None,
        context: None,
        codec: None,
        job: "1/1".to_owned(),
        // A demo that was interrupted goes on.
        resume: true,
        dry_run: false,
        config: None,
        set: Vec::new(),
    }
}

fn train(out: &Path, context: &Context) -> anyhow::Result<()> {
    let (run, cache): (PathBuf, PathBuf) = (out.join("run"), out.join("cache"));
    let presets = serde_json::to_value(TrainConfig::default())?;
    let config: TrainConfig = circuitlab::config::resolve(Some(&out.join(SETTINGS)), &[], presets)?;
    let resume = run.exists();
    let request = TrainRequest {
        registry: &context.registry,
        cache: Some(&cache),
        out: &run,
        config: if resume { None } else { Some(config) },
        resume,
        progress: &context.bars,
        stop: None,
    };
    circuitlab::train::train(&request)?;
    Ok(())
}

fn eval_args(out: &Path) -> EvalArgs {
    EvalArgs {
        clt: vec![out.join("run").join("final")],
        place: place(out),
        text: text(out, HELD_OUT_RANGE),
        context: 128,
        max_contexts: None,
        batch_contexts: 32,
        prompts: FaithfulnessArgs::default(),
    }
}

fn summary(report: &Report, out: &Path, took: &str) -> String {
    let all = &report.faithfulness.all;
    let out = out.display();
    // As it was started, so that the lines below can be pasted.
    let program = std::env::args().next().unwrap_or_else(|| "circuitlab".to_owned());
    format!(
        "\
Held out, on {rows} tokens of text that neither the model nor the transcoder was trained on:
  explained variance      {ev:.3}
  active features (L0)    {l0:.1} of {features} in a layer, on average
  cross-entropy           {model:.3} nats a token by the model, {spliced:.3} with all MLPs replaced ({recovered:.1} % recovered)
Done in {took}.

  {out}/cache        the activations
  {out}/run/plots    loss, explained variance, L0, .. (SVG); {out}/run for TensorBoard
  {out}/run/final    the transcoder, in circuit-tracer's layout
  {out}/eval.json    all figures

Next:
  {program} train --cache {out}/cache --out runs/sparser --config {out}/train.toml --set sparsity.lambda=0.5
  {program} eval --clt runs/sparser/final --model {out}/model --text {out}/shakespeare.txt --range {HELD_OUT_RANGE}",
        rows = human::whole(report.rows),
        ev = report.explained_variance,
        l0 = report.l0_per_layer,
        features = report.d_features,
        model = report.faithfulness.model_cross_entropy,
        spliced = all.spliced.cross_entropy,
        recovered = 100.0 * all.recovered_from_zero,
    )
}
