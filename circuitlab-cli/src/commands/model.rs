//! `circuitlab model`.

use std::path::PathBuf;

use anyhow::Context as _;
use circuitlab::hub;
use circuitlab_core::config::{DeviceName, FloatKind};
use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{LanguageModel, ModelInfo, ModelSource};
use serde_json::{Value, json};
use tch::{Device, Kind};

use super::{Context, generate};
use crate::args::{ActivationsArgs, ModelCommand, ModelPlace, ShowArgs};
use crate::output::{Table, human};

pub(super) fn run(command: &ModelCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        ModelCommand::Show(args) => show(args, context),
        ModelCommand::Activations(args) => activations(args, context),
        ModelCommand::Generate(args) => generate::run(args, context),
    }
}

/// Opens the model that the flags name, and gives its folder too, where its tokenizer is.
pub(super) fn open(place: &ModelPlace, context: &Context) -> anyhow::Result<(Box<dyn LanguageModel>, PathBuf)> {
    let device: DeviceName = place.device.parse().context("--device")?;
    circuitlab::device::resolve(device)?;
    let dtype: FloatKind = circuitlab_core::config::read("--dtype", json!(place.dtype))?;
    let found = hub::find_model(&place.model, &context.bars)?;
    let source = ModelSource { device, dtype, attention_gate: place.attention_gate, ..found };
    Ok((circuitlab::model::open(&context.registry, &source)?, source.path))
}

fn show(args: &ShowArgs, context: &Context) -> anyhow::Result<()> {
    let source = ModelSource { without_weights: true, ..hub::find_model(&args.model, &context.bars)? };
    let model = circuitlab::model::open(&context.registry, &source)?;
    let info = model.info();
    let hooks: Vec<String> = model.hook_points().iter().map(ToString::to_string).collect();
    let description: Value = serde_json::from_str(&model.description()).unwrap_or(Value::Null);
    context.print(&json!({"model": info, "description": description, "hook_points": hooks}), || {
        format!("{}\n\n{}\n\n{}", facts(info), description_lines(&description), hook_lines(model.as_ref()))
    })
}

/// The resolved description, a line for each setting.
fn description_lines(description: &Value) -> String {
    let settings = description.as_object().into_iter().flatten().map(|(key, value)| match value {
        // Layers that are alike stand together.
        Value::Array(layers) => format!("  {key}: {}", runs(layers)),
        other => format!("  {key}: {other}"),
    });
    std::iter::once("description:".to_owned()).chain(settings).collect::<Vec<_>>().join("\n")
}

fn runs(values: &[Value]) -> String {
    let alike = values.chunk_by(|a, b| a == b).map(|run| format!("{} x {}", run.len(), run[0]));
    alike.collect::<Vec<_>>().join(", ")
}

fn facts(info: &ModelInfo) -> String {
    let token = |token: Option<u32>| token.map_or_else(|| "none".to_owned(), |token| token.to_string());
    let memory = |bytes: u64| human::bytes(info.parameters * bytes);
    let mut table = Table::new(["model", info.name.as_str()]);
    for (name, value) in [
        ("family", info.family.clone()),
        ("parameters", human::whole(info.parameters)),
        ("memory", format!("{} in f32, {} in bf16", memory(4), memory(2))),
        ("layers", info.layers.to_string()),
        ("d_model", info.d_model.to_string()),
        ("heads", format!("{} of width {}, {} for keys and values", info.heads, info.d_head, info.kv_heads)),
        ("d_mlp", info.d_mlp.to_string()),
        ("vocabulary", human::whole(info.vocabulary as u64)),
        ("context", format!("{} tokens", info.context)),
        ("BOS, EOS", format!("{}, {}", token(info.bos), token(info.eos))),
        ("fingerprint", info.fingerprint.clone()),
    ] {
        table.row([name.to_owned(), value]);
    }
    table.to_string()
}

/// The hook points, those of all blocks as one.
fn hook_lines(model: &dyn LanguageModel) -> String {
    let last = model.info().layers.saturating_sub(1);
    let mut lines = vec!["hook points:".to_owned()];
    for point in model.hook_points() {
        let line = point.to_string();
        if let Some(hook) = line.strip_prefix("blocks.0.") {
            lines.push(format!("  blocks.{{0..{last}}}.{hook}"));
        } else if !line.starts_with("blocks.") {
            lines.push(format!("  {line}"));
        }
    }
    lines.join("\n")
}

fn activations(args: &ActivationsArgs, context: &Context) -> anyhow::Result<()> {
    let (model, _) = open(&args.place, context)?;
    let (device, _) = model.placement();
    let tokens = TensorFile::open(&args.tokens)?.tensor("tokens", Some(Kind::Int64), device)?;
    let captured = tch::no_grad(|| circuitlab::model::activations(model.as_ref(), &tokens))?;
    let captured: Vec<_> = captured.into_iter().map(|(name, value)| (name, value.to_device(Device::Cpu))).collect();
    tensors::write(&args.out, &captured)?;
    let shapes: serde_json::Map<_, _> = captured.iter().map(|(name, value)| (name.clone(), json!(value.size()))).collect();
    context.print(&json!({"out": args.out.display().to_string(), "tensors": shapes}), || {
        format!("wrote {} tensors to {}", captured.len(), args.out.display())
    })
}
