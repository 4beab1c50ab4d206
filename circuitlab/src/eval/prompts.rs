//! Faithfulness on prompts: what a transcoder's graphs leave unexplained, what its reconstructions do to predictions, and whether what it says
//! of its features comes true.

use circuitlab_core::LanguageModel;
use circuitlab_core::hooks::NoHooks;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::agreement::{Agreement, Sums};
use super::batch::pick;
use super::perturbation::{self, ByDistance, Found};
use super::splice::{Splice, Stand};
use crate::graph::{AttributeOptions, Attribution, Graph, Influence, Prompt};
use crate::saved::SavedTranscoder;
use crate::text::Tokenizer;
use crate::{Error, Progress, Result, Silent};

/// What is done on each prompt.
#[derive(Debug)]
pub struct PromptOptions {
    /// How graphs are computed.
    pub attribute: AttributeOptions,
    /// Features that are perturbed on each prompt.
    pub samples: usize,
    /// Seed of their choice.
    pub seed: u64,
}

/// Faithfulness of one or several transcoders on the same prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptReport {
    /// The language model's name.
    pub model: String,
    /// Features that were perturbed on each prompt, where as many were active.
    pub samples: usize,
    /// Seed of their choice.
    pub seed: u64,
    /// Each transcoder's.
    pub transcoders: Vec<TranscoderReport>,
}

/// One transcoder's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TranscoderReport {
    /// Its folder.
    pub transcoder: String,
    /// circuit-tracer's name of its kind.
    pub kind: String,
    /// Prompt by prompt.
    pub prompts: Vec<PromptScores>,
    /// The mean over the prompts.
    pub mean: Means,
    /// Predicted against measured changes with everything held but direct effects, which the graph's edges state.
    pub direct: Perturbed,
    /// The same with attention patterns alone held, predicted along all paths of the graph.
    pub attention_held: Perturbed,
}

/// What was found on a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptScores {
    /// The prompt, special tokens included.
    pub prompt: String,
    /// Its tokens.
    pub tokens: usize,
    /// Features that are active on it.
    pub active_features: usize,
    /// Those of them that are nodes of its graph.
    pub selected_features: usize,
    /// Those of them that were perturbed.
    pub perturbed_features: usize,
    /// The graph's replacement score.
    pub replacement: f64,
    /// The graph's completeness score.
    pub completeness: f64,
    /// What predictions become.
    #[serde(flatten)]
    pub spliced: SplicedPrompt,
}

/// What a model's predictions on a prompt become with all MLPs replaced. Positions of special tokens at its beginning do not count; there the
/// model's own MLP outputs stay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SplicedPrompt {
    /// Nats per predicted token of the model itself; none where the prompt holds no token to predict.
    pub model_cross_entropy: Option<f64>,
    /// The same with all MLPs replaced.
    pub cross_entropy: Option<f64>,
    /// KL divergence of the replaced model's predictions from the model's own, nats per position.
    pub kl: f64,
    /// The share of positions at which both find the same token likeliest.
    pub agreement: f64,
    /// Whether they do so at the last position.
    pub last_agrees: bool,
}

/// Means over prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Means {
    /// Of replacement scores.
    pub replacement: f64,
    /// Of completeness scores.
    pub completeness: f64,
    /// Nats per predicted token of the model itself, over the prompts that hold one.
    pub model_cross_entropy: Option<f64>,
    /// The same with all MLPs replaced.
    pub cross_entropy: Option<f64>,
    /// Of KL divergences.
    pub kl: f64,
    /// Of shares of positions with the same likeliest token.
    pub agreement: f64,
    /// The share of prompts after which both find the same token likeliest.
    pub last_agrees: f64,
}

/// Predicted against measured changes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perturbed {
    /// Of pre-activations one layer further, two, ..
    pub by_distance: Vec<Agreement>,
    /// Of all pre-activations.
    pub features: Agreement,
    /// Of the graphs' logits, each less the mean logit.
    pub logits: Agreement,
}

/// Measures how faithful transcoders are on prompts.
///
/// # Errors
/// No prompt, transcoders of another model, and what attribution and interventions return; which prompt it was is told.
pub fn evaluate_prompts(
    transcoders: &[SavedTranscoder],
    model: &dyn LanguageModel,
    tokenizer: Option<&Tokenizer>,
    prompts: &[Prompt],
    options: &PromptOptions,
    progress: &dyn Progress,
) -> Result<PromptReport> {
    if prompts.is_empty() {
        return Err(Error::Invalid("there is no prompt; expected one in each line".to_owned()));
    }
    for saved in transcoders {
        saved.check_model(model.info())?;
    }
    let scratch = tempfile::tempdir().map_err(circuitlab_core::Error::io("create a folder in", &std::env::temp_dir()))?;
    let bench = Bench { model, tokenizer, options, scratch: scratch.path() };
    progress.begin("faithfulness", (prompts.len() * transcoders.len()) as u64, "prompts");
    let mut reports = Vec::new();
    for (place, saved) in transcoders.iter().enumerate() {
        let done = |number: usize| progress.at((place * prompts.len() + number) as u64, "");
        reports.push(tch::no_grad(|| bench.transcoder(saved, prompts, &done))?);
    }
    progress.end();
    Ok(PromptReport { model: model.info().name.clone(), samples: options.samples, seed: options.seed, transcoders: reports })
}

struct Bench<'a> {
    model: &'a dyn LanguageModel,
    tokenizer: Option<&'a Tokenizer>,
    options: &'a PromptOptions,
    /// Where graphs lie while they are looked at.
    scratch: &'a std::path::Path,
}

impl Bench<'_> {
    fn transcoder(&self, saved: &SavedTranscoder, prompts: &[Prompt], done: &dyn Fn(usize)) -> Result<TranscoderReport> {
        let layers = saved.dims.layers;
        let (mut direct, mut total) = (ByDistance::new(layers), ByDistance::new(layers));
        let mut scores = Vec::new();
        for (number, prompt) in prompts.iter().enumerate() {
            let found = self.prompt(saved, prompt, number as u64);
            let (score, found) = found.map_err(|error| Error::Invalid(format!("prompt {} (`{}`): {error}", number + 1, prompt.text)))?;
            direct.join(&found.direct);
            total.join(&found.total);
            scores.push(score);
            done(number + 1);
        }
        Ok(TranscoderReport {
            transcoder: saved.folder.display().to_string(),
            kind: saved.card.model_kind.clone(),
            mean: Means::of(&scores),
            prompts: scores,
            direct: Perturbed::of(&direct),
            attention_held: Perturbed::of(&total),
        })
    }

    fn prompt(&self, saved: &SavedTranscoder, prompt: &Prompt, number: u64) -> Result<(PromptScores, Found)> {
        let path = self.scratch.join("graph.safetensors");
        let attribution = Attribution::new(self.model, saved, prompt, self.tokenizer, &self.options.attribute, false)?;
        let attributed = attribution.write(&path, "prompt", &Silent)?;
        drop(attribution);
        let graph = Graph::open(&path)?;
        let scores = Influence::of(&graph)?.scores;
        let found = perturbation::measure(self.model, saved, prompt, &graph, self.options.samples, self.options.seed, number)?;
        let scores = PromptScores {
            prompt: prompt.text.clone(),
            tokens: prompt.tokens.len(),
            active_features: attributed.active_features,
            selected_features: attributed.selected_features,
            perturbed_features: found.features,
            replacement: scores.replacement,
            completeness: scores.completeness,
            spliced: spliced(self.model, saved, prompt)?,
        };
        Ok((scores, found))
    }
}

/// Replaces all MLPs at once.
fn spliced(model: &dyn LanguageModel, saved: &SavedTranscoder, prompt: &Prompt) -> Result<SplicedPrompt> {
    let (device, _) = model.placement();
    let ids: Vec<i64> = prompt.tokens.iter().map(|id| i64::from(*id)).collect();
    let (special, count) = (prompt.special.len() as i64, ids.len() as i64);
    let tokens = Tensor::from_slice(&ids).f_unsqueeze(0)?.f_to_device(device)?;
    let rows = Tensor::f_arange_start(special, count, (Kind::Int64, device))?;
    let gone = || Error::Invalid(format!("model `{}` gave no logits", model.info().name));
    let predictions =
        |logits: Option<Tensor>| -> Result<Tensor> { Ok(pick(&logits.ok_or_else(gone)?, &rows).f_log_softmax(-1, Kind::Double)?) };
    let own = predictions(model.forward(&tokens, &mut NoHooks)?)?;
    let mut splice = Splice::new(Stand::Transcoder(saved), 0..saved.dims.layers, saved.hooks()?, &rows);
    let with = predictions(model.forward(&tokens, &mut splice)?)?;
    let predicted = count - special - 1;
    let expected = tokens.f_get(0)?.f_narrow(0, special + 1, predicted.max(0))?.f_unsqueeze(1)?;
    let cross_entropy = |of: &Tensor| -> Result<Option<f64>> {
        if predicted < 1 {
            return Ok(None);
        }
        let chances = of.f_narrow(0, 0, predicted)?.f_gather(1, &expected, false)?;
        Ok(Some(-chances.f_mean(Kind::Double)?.f_double_value(&[])?))
    };
    let same = own.f_argmax(-1, false)?.f_eq_tensor(&with.f_argmax(-1, false)?)?.f_to_kind(Kind::Double)?;
    Ok(SplicedPrompt {
        model_cross_entropy: cross_entropy(&own)?,
        cross_entropy: cross_entropy(&with)?,
        kl: (own.exp() * (&own - &with)).f_sum(Kind::Double)?.f_double_value(&[])? / (count - special) as f64,
        agreement: same.f_mean(Kind::Double)?.f_double_value(&[])?,
        last_agrees: same.f_double_value(&[count - special - 1])? > 0.5,
    })
}

impl Means {
    /// Of some prompts.
    pub fn of(scores: &[PromptScores]) -> Self {
        let mean = |of: &dyn Fn(&PromptScores) -> f64| scores.iter().map(of).sum::<f64>() / scores.len().max(1) as f64;
        let of_some = |of: &dyn Fn(&PromptScores) -> Option<f64>| {
            let known: Vec<f64> = scores.iter().filter_map(of).collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        Self {
            replacement: mean(&|one| one.replacement),
            completeness: mean(&|one| one.completeness),
            model_cross_entropy: of_some(&|one| one.spliced.model_cross_entropy),
            cross_entropy: of_some(&|one| one.spliced.cross_entropy),
            kl: mean(&|one| one.spliced.kl),
            agreement: mean(&|one| one.spliced.agreement),
            last_agrees: mean(&|one| f64::from(u8::from(one.spliced.last_agrees))),
        }
    }
}

impl Perturbed {
    fn of(found: &ByDistance) -> Self {
        let mut features = Sums::default();
        found.layers.iter().for_each(|sums| features.join(sums));
        Self {
            by_distance: found.layers.iter().map(Sums::agreement).collect(),
            features: features.agreement(),
            logits: found.logits.agreement(),
        }
    }
}
