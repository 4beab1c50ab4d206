//! `circuitlab model generate`.

use circuitlab::generate::{Sampling, generate};
use circuitlab::graph::Prompt;
use circuitlab::intervene::Generated;
use circuitlab::saved::SavedTranscoder;
use circuitlab::text::Tokenizer;
use circuitlab_core::config::FloatKind;
use circuitlab_core::tch::Tensor;
use circuitlab_core::{LanguageModel, ModelInfo, tensors};
use serde_json::json;

use super::{Context, intervene, model};
use crate::args::{GenerateArgs, PromptArgs};

pub(super) fn run(args: &GenerateArgs, context: &Context) -> anyhow::Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.check()?;
    let (model, folder) = model::open(&args.place, context)?;
    let tokenizer = tokenizer(&args.prompt, &folder, model.info())?;
    let prompt = tokens(&args.prompt, tokenizer.as_ref(), model.info())?;
    let added = match &args.clt {
        None => generate(model.as_ref(), &prompt, args.max_tokens, &sampling)?,
        Some(clt) => {
            let saved = SavedTranscoder::open(&context.registry, clt, args.place.device.parse()?, FloatKind::F32)?;
            let generated = changed(args, model.as_ref(), &saved, prompt.clone(), tokenizer.as_ref(), &sampling)?;
            if let Some(file) = &args.tensors {
                tensors::write(file, &named(&generated, "gen")?)?;
            }
            generated.tokens
        }
    };
    let text = tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&added)).transpose()?;
    context.print(&json!({"prompt": prompt, "tokens": added, "text": text}), || match (&args.prompt.prompt, &text) {
        (Some(prompt), Some(text)) => format!("{prompt}{text}"),
        (None, Some(text)) => text.clone(),
        (_, None) => added.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    })
}

/// Ids need no tokenizer, and are shown as text where there is one.
pub(super) fn tokenizer(args: &PromptArgs, folder: &std::path::Path, info: &ModelInfo) -> anyhow::Result<Option<Tokenizer>> {
    match Tokenizer::load(folder, info) {
        Err(_) if args.prompt.is_none() => Ok(None),
        loaded => Ok(Some(loaded?)),
    }
}

/// The tokens of a prompt, which may be none.
fn tokens(args: &PromptArgs, tokenizer: Option<&Tokenizer>, info: &ModelInfo) -> anyhow::Result<Vec<u32>> {
    Ok(match (&args.prompt, tokenizer) {
        (Some(text), Some(tokenizer)) => info.bos.filter(|_| !args.no_bos).into_iter().chain(tokenizer.encode(text)?).collect(),
        _ => args.tokens.clone(),
    })
}

/// Continues the text with features changed.
fn changed(
    args: &GenerateArgs,
    model: &dyn LanguageModel,
    saved: &SavedTranscoder,
    prompt: Vec<u32>,
    tokenizer: Option<&Tokenizer>,
    sampling: &Sampling,
) -> anyhow::Result<Generated> {
    let prompt = Prompt::of_tokens(prompt, tokenizer, model.info())?;
    let (interventions, _) = intervene::changes(&args.changes)?;
    let freeze = !args.changes.no_freeze_attention;
    Ok(circuitlab::intervene::generate(model, saved, &prompt, &interventions, freeze, args.max_tokens, sampling)?)
}

/// A continued text as tensors.
pub(super) fn named(generated: &Generated, prefix: &str) -> anyhow::Result<Vec<(String, Tensor)>> {
    let (index, values) = generated.features.tensors()?;
    let tokens: Vec<i64> = generated.tokens.iter().map(|token| i64::from(*token)).collect();
    let tensors =
        [("tokens", Tensor::from_slice(&tokens)), ("logits", generated.logits.shallow_clone()), ("act_idx", index), ("act_val", values)];
    Ok(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}_{name}"), tensor)).collect())
}
