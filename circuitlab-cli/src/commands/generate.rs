//! `circuitlab model generate`.

use circuitlab::generate::{Sampling, generate};
use circuitlab::text::Tokenizer;
use serde_json::json;

use super::{Context, model};
use crate::args::GenerateArgs;

pub(super) fn run(args: &GenerateArgs, context: &Context) -> anyhow::Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.check()?;
    let (model, folder) = model::open(&args.place, context)?;
    let info = model.info();
    // Ids need no tokenizer, and are shown as text where there is one.
    let tokenizer = match Tokenizer::load(&folder, info) {
        Err(_) if args.prompt.is_none() => None,
        loaded => Some(loaded?),
    };
    let prompt = match (&args.prompt, &tokenizer) {
        (Some(text), Some(tokenizer)) => info.bos.filter(|_| !args.no_bos).into_iter().chain(tokenizer.encode(text)?).collect(),
        _ => args.tokens.clone(),
    };
    let added = generate(model.as_ref(), &prompt, args.max_tokens, &sampling)?;
    let text = tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&added)).transpose()?;
    context.print(&json!({"prompt": prompt, "tokens": added, "text": text}), || match (&args.prompt, &text) {
        (Some(prompt), Some(text)) => format!("{prompt}{text}"),
        (None, Some(text)) => text.clone(),
        (_, None) => added.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    })
}
