//! What the flags name to be explained.

use std::path::Path;

use anyhow::Context as _;
use circuitlab::graph::{NamedTarget, TargetChoice};
use circuitlab_core::tch::Device;
use circuitlab_core::tensors::TensorFile;

use crate::args::ExplainedArgs;

pub(super) fn choice(args: &ExplainedArgs) -> anyhow::Result<TargetChoice> {
    let mut named = args.target.iter().map(|text| token(text)).collect::<anyhow::Result<Vec<_>>>()?;
    for pair in args.difference.chunks_exact(2) {
        named.push(NamedTarget::Difference(Box::new(token(&pair[0])?), Box::new(token(&pair[1])?)));
    }
    for text in &args.direction {
        named.push(direction(text).with_context(|| format!("--direction `{text}`"))?);
    }
    if named.is_empty() {
        return Ok(TargetChoice::Likeliest { most: args.max_n_logits, share: args.desired_logit_prob });
    }
    Ok(TargetChoice::Named(named))
}

fn token(text: &str) -> anyhow::Result<NamedTarget> {
    match text.strip_prefix('#') {
        // A `#` alone is a text.
        Some(id) if !id.is_empty() => {
            let id = id.parse().with_context(|| format!("target `{text}`: `{id}` is no token id; expected one such as `#253`"))?;
            Ok(NamedTarget::Token(id))
        }
        _ => Ok(NamedTarget::Text(text.to_owned())),
    }
}

/// `FILE:TENSOR[=WEIGHT]`. The tensor's name may hold `=`, if a number follows the last one.
fn direction(text: &str) -> anyhow::Result<NamedTarget> {
    let weighed = text.rsplit_once('=').and_then(|(rest, weight)| Some((rest, weight.parse::<f64>().ok()?)));
    let (place, weight) = weighed.unwrap_or((text, 1.0));
    let (file, name) = place.rsplit_once(':').context("expected FILE:TENSOR, such as `directions.safetensors:truth`")?;
    let vector = TensorFile::open(Path::new(file))?.tensor(name, None, Device::Cpu)?;
    Ok(NamedTarget::Direction { label: name.to_owned(), weight, vector })
}
