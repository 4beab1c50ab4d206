//! Continuing a text while features are changed.

use circuitlab_core::{BlockHook, HookPoint, LanguageModel, Past};
use tch::{Device, Kind, Tensor};

use super::edit::{Edit, Patterns, Plan};
use super::run::{logits, tokens};
use super::{Features, Intervention, Mode, Want};
use crate::generate::{Sampling, go_on};
use crate::graph::Prompt;
use crate::model::Capture;
use crate::saved::SavedTranscoder;
use crate::{Error, Result};

/// A continued text.
#[derive(Debug)]
pub struct Generated {
    /// The tokens that were added.
    pub tokens: Vec<u32>,
    /// What each of them was drawn from: `[tokens, vocabulary]`, f32, on the CPU.
    pub logits: Tensor,
    /// Activations at all positions but the last token's, which was not run.
    pub features: Features,
}

/// Adds up to `most` tokens to a prompt, as [`generate`](crate::generate::generate) does, while features are changed.
///
/// The prompt is run with all interventions, where `freeze_attention` with the patterns that it has without them. Those that are
/// [open](super::Positions::is_open) go on at every token that is added, whose attention is free.
///
/// # Errors
/// A transcoder of another model, interventions on what there is not, and what generating returns.
pub fn generate(
    model: &dyn LanguageModel,
    saved: &SavedTranscoder,
    prompt: &Prompt,
    interventions: &[Intervention],
    freeze_attention: bool,
    most: usize,
    sampling: &Sampling,
) -> Result<Generated> {
    saved.check_model(model.info())?;
    for intervention in interventions {
        intervention.check(saved, prompt.tokens.len(), true)?;
    }
    tch::no_grad(|| {
        let patterns = if freeze_attention && !interventions.is_empty() { patterns(model, prompt)? } else { Vec::new() };
        let mut so_far = SoFar { total: 0, past: Past::default(), logits: Vec::new(), features: Vec::new() };
        let run = Run { model, saved, prompt, interventions, patterns };
        let added = go_on(model, &prompt.tokens, most, sampling, &mut |tokens| run.extend(tokens, &mut so_far))?;
        let vocabulary = model.info().vocabulary as i64;
        let logits = if so_far.logits.is_empty() {
            Tensor::f_zeros([0, vocabulary], (Kind::Float, Device::Cpu))?
        } else {
            Tensor::f_cat(&so_far.logits, 0)?
        };
        Ok(Generated { tokens: added, logits, features: Features::joined(so_far.features) })
    })
}

/// The attention patterns of a prompt, layer by layer: `[1, head, query, key]`.
fn patterns(model: &dyn LanguageModel, prompt: &Prompt) -> Result<Vec<Tensor>> {
    let points: Vec<HookPoint> = (0..model.info().layers).map(|layer| HookPoint::block(layer, BlockHook::Pattern)).collect();
    let mut capture = Capture::new(points.iter().copied());
    drop(logits(model, &tokens(&prompt.tokens)?, &mut capture)?);
    points.into_iter().map(|point| capture.take(point)).collect()
}

struct Run<'a> {
    model: &'a dyn LanguageModel,
    saved: &'a SavedTranscoder,
    prompt: &'a Prompt,
    interventions: &'a [Intervention],
    patterns: Vec<Tensor>,
}

struct SoFar {
    /// Positions that were run.
    total: usize,
    past: Past,
    logits: Vec<Tensor>,
    features: Vec<Features>,
}

impl Run<'_> {
    fn extend(&self, tokens: &Tensor, so_far: &mut SoFar) -> Result<Tensor> {
        let before = so_far.total;
        so_far.total += tokens.size()[1] as usize;
        let mut edit = Edit::new(Plan {
            saved: self.saved,
            rows: vec![self.interventions],
            mode: &Mode::Free,
            patterns: if self.patterns.is_empty() { Patterns::Live } else { Patterns::Given(&self.patterns) },
            prompt: self.prompt.tokens.len(),
            special: self.prompt.special.len(),
            total: so_far.total,
            clean_row: false,
            want: Want::Activations,
            keep_from: before,
        })?;
        let logits = self
            .model
            .extend(tokens, &mut so_far.past, &mut edit)?
            .ok_or_else(|| Error::Invalid(format!("model `{}` gave no logits", self.model.info().name)))?;
        so_far.logits.push(logits.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?);
        so_far.features.extend(edit.into_found().0);
        Ok(logits)
    }
}
