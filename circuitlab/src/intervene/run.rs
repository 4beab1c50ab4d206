//! Interventions on a prompt.

use circuitlab_core::{HookVisitor, LanguageModel};
use tch::{Device, Kind, Tensor};

use super::edit::{Edit, Patterns, Plan};
use super::{Features, Intervention, Mode};
use crate::graph::Prompt;
use crate::saved::SavedTranscoder;
use crate::{Error, Result};

/// What is wanted of a run beside its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing.
    Logits,
    /// All activations that are not zero.
    Activations,
    /// The pre-activations of all features that are active in the run without changes.
    PreActivations,
}

/// Something to try on a prompt.
#[derive(Debug)]
pub struct Variant {
    /// What is changed.
    pub interventions: Vec<Intervention>,
    /// What stays.
    pub mode: Mode,
    /// What is wanted of it.
    pub want: Want,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// `[position, vocabulary]`, f32, on the CPU; of the last position alone where no more was wanted.
    pub logits: Tensor,
    /// The features that were wanted. At positions of special tokens there are none.
    pub features: Features,
}

/// What came of all variants.
#[derive(Debug)]
pub struct Study {
    /// Of the run without changes: its activations, where any variant wants anything.
    pub clean: Outcome,
    /// Pre-activations of the same features without changes, where any variant wants them.
    pub clean_pre_activations: Features,
    /// Of each variant.
    pub variants: Vec<Outcome>,
}

/// How interventions are run.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// About so much memory is used for variants that run together; one at a time is run in any case.
    pub memory_bytes: u64,
    /// Whether only the last position's logits are kept.
    pub last_logits: bool,
}

impl Default for Budget {
    /// A gibibyte, and all logits.
    fn default() -> Self {
        Self { memory_bytes: 1 << 30, last_logits: false }
    }
}

/// Runs a prompt as it is and once for every variant. Variants of one mode share forward passes, each a row of the batch beside a row without
/// changes, which the others are held to; so nothing of that run is kept, whatever the prompt's length.
///
/// # Errors
/// A transcoder of another model, interventions on what there is not, what the model refuses, and logits and activations that are no numbers.
pub fn intervene(
    model: &dyn LanguageModel,
    saved: &SavedTranscoder,
    prompt: &Prompt,
    variants: &[Variant],
    budget: Budget,
) -> Result<Study> {
    check(model, saved, prompt, variants)?;
    let bench = Bench { model, saved, prompt, budget };
    tch::no_grad(|| bench.run(variants))
}

fn check(model: &dyn LanguageModel, saved: &SavedTranscoder, prompt: &Prompt, variants: &[Variant]) -> Result<()> {
    saved.check_model(model.info())?;
    prompt.check(model.info())?;
    for variant in variants {
        variant.mode.check(saved.dims.layers)?;
        for intervention in &variant.interventions {
            intervention.check(saved, prompt.tokens.len(), false)?;
        }
    }
    Ok(())
}

struct Bench<'a> {
    model: &'a dyn LanguageModel,
    saved: &'a SavedTranscoder,
    prompt: &'a Prompt,
    budget: Budget,
}

impl Bench<'_> {
    fn run(&self, variants: &[Variant]) -> Result<Study> {
        let mut clean: Option<Outcome> = None;
        let mut clean_pre_activations = Features::default();
        let mut outcomes: Vec<Option<Outcome>> = variants.iter().map(|_| None).collect();
        let most = usize::try_from(self.budget.memory_bytes / self.row_bytes()).unwrap_or(usize::MAX).saturating_sub(1).max(1);
        for (mode, want, places) in groups(variants) {
            for places in places.chunks(most) {
                let rows = places.iter().map(|place| variants[*place].interventions.as_slice()).collect();
                let (outcomes_of, pre_acts) = self.pass(rows, mode, want)?;
                if clean_pre_activations.sites.is_empty() {
                    clean_pre_activations = pre_acts;
                }
                let mut found = outcomes_of.into_iter();
                let first = found.next();
                // Where several groups run, the first one that keeps features has those of the run without changes.
                if clean.as_ref().is_none_or(|clean| clean.features.sites.is_empty()) {
                    clean = first;
                }
                for (place, outcome) in places.iter().zip(found) {
                    outcomes[*place] = Some(outcome);
                }
            }
        }
        let clean = match clean {
            Some(clean) => clean,
            None => self.pass(Vec::new(), &Mode::Free, Want::Activations)?.0.swap_remove(0),
        };
        let study = Study { clean, clean_pre_activations, variants: outcomes.into_iter().flatten().collect() };
        self.numbers(&study)?;
        Ok(study)
    }

    /// Checks that what came are numbers.
    fn numbers(&self, study: &Study) -> Result<()> {
        let none = |outcome: &Outcome| -> Result<bool> { Ok(outcome.logits.f_isnan()?.f_any()?.f_int64_value(&[])? != 0) };
        if none(&study.clean)? {
            return Err(Error::Invalid(format!("the model `{}` gave logits that are no numbers", self.model.info().name)));
        }
        let mut values = study.clean.features.values.iter().zip(&study.clean.features.sites);
        if let Some((_, site)) = values.find(|(value, _)| !value.is_finite()) {
            let folder = self.saved.folder.display();
            return Err(Error::Invalid(format!("transcoder `{folder}`: the activation of feature {site} is no number")));
        }
        for (place, outcome) in study.variants.iter().enumerate() {
            if none(outcome)? {
                return Err(Error::Invalid(format!(
                    "intervention {} leads to logits that are no numbers; smaller changes may not",
                    place + 1
                )));
            }
        }
        Ok(())
    }

    /// One forward pass: a row without changes, and one for each variant. With the pre-activations of the former, where they are wanted.
    fn pass(&self, variants: Vec<&[Intervention]>, mode: &Mode, want: Want) -> Result<(Vec<Outcome>, Features)> {
        let rows: Vec<&[Intervention]> = std::iter::once(&[] as &[Intervention]).chain(variants).collect();
        let batch = rows.len() as i64;
        let total = self.prompt.tokens.len();
        let mut edit = Edit::new(Plan {
            saved: self.saved,
            rows,
            mode,
            patterns: if mode.freezes_attention() { Patterns::FirstRow } else { Patterns::Live },
            prompt: total,
            special: self.prompt.special.len(),
            total,
            clean_row: true,
            want,
            keep_from: 0,
        })?;
        let logits = logits(self.model, &tokens(&self.prompt.tokens)?.f_repeat([batch, 1])?, &mut edit)?;
        let kept = |row: i64| -> Result<Tensor> {
            let of_row = logits.f_select(0, row)?;
            let last = of_row.size()[0] - 1;
            let wanted = if self.budget.last_logits { of_row.f_narrow(0, last, 1)? } else { of_row };
            // A copy, so that one variant's logits do not keep all in memory.
            Ok(wanted.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.copy())
        };
        let (features, pre_acts) = edit.into_found();
        let outcome = |(row, features): (usize, Features)| Ok(Outcome { logits: kept(row as i64)?, features });
        Ok((features.into_iter().enumerate().map(outcome).collect::<Result<_>>()?, pre_acts))
    }

    /// About how much memory a row of the batch needs at its widest places.
    fn row_bytes(&self) -> u64 {
        let info = self.model.info();
        let positions = self.prompt.tokens.len() as u64;
        let of = |numbers: usize| numbers as u64;
        let widths = 2 * of(info.vocabulary) + 3 * of(info.d_mlp) + 3 * of(self.saved.dims.d_features);
        let stream = of(info.d_model) * (12 + of(info.layers));
        (4 * positions * (widths + stream + 3 * of(info.heads) * positions)).max(1)
    }
}

/// Variants that can share passes: those of one mode that want the same.
fn groups(variants: &[Variant]) -> Vec<(&Mode, Want, Vec<usize>)> {
    let mut groups: Vec<(&Mode, Want, Vec<usize>)> = Vec::new();
    for (place, variant) in variants.iter().enumerate() {
        match groups.iter_mut().find(|(mode, want, _)| **mode == variant.mode && *want == variant.want) {
            Some((_, _, places)) => places.push(place),
            None => groups.push((&variant.mode, variant.want, vec![place])),
        }
    }
    groups
}

/// One prompt: `[1, position]`.
pub(super) fn tokens(ids: &[u32]) -> Result<Tensor> {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    Ok(Tensor::from_slice(&ids).f_unsqueeze(0)?)
}

/// A forward pass that is not stopped.
pub(super) fn logits(model: &dyn LanguageModel, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Tensor> {
    model.forward(tokens, visitor)?.ok_or_else(|| Error::Invalid(format!("model `{}` gave no logits", model.info().name)))
}
