//! Evaluation on held-out text: how well a transcoder reconstructs, and what the language model loses when it takes the
//! place of the MLPs.

mod agreement;
mod batch;
mod faithfulness;
mod perturbation;
mod prompts;
mod reconstruction;
mod report;
mod splice;

use std::collections::HashSet;

pub use agreement::Agreement;
pub use batch::EvalText;
pub use prompts::{Means, Perturbed, PromptOptions, PromptReport, PromptScores, SplicedPrompt, TranscoderReport, evaluate_prompts};
pub use report::{Faithfulness, LayerReport, Loss, Report, SpliceReport};

use circuitlab_core::LanguageModel;

use crate::saved::SavedTranscoder;
use crate::{Progress, Result};

/// Evaluates a transcoder that takes and gives raw activations.
///
/// Rows of special tokens, unless the transcoder was trained on them, count neither for reconstruction nor are they spliced: there
/// the model's own MLP output stays. All cross-entropies are in nats per predicted token.
///
/// # Errors
/// A transcoder of another model or other hooks, contexts that the model cannot take, and text without a token to predict.
pub fn evaluate(saved: &SavedTranscoder, model: &dyn LanguageModel, text: &EvalText, progress: &dyn Progress) -> Result<Report> {
    saved.check_model(model.info())?;
    let everything = EvalText { special: HashSet::new(), ..text.clone() };
    let drops = saved.card.circuitlab.as_ref().is_none_or(|known| known.drop_special_rows);
    let text = if drops { text } else { &everything };
    tch::no_grad(|| {
        let reconstruction = reconstruction::measure(saved, model, text, progress)?;
        let faithfulness = faithfulness::measure(saved, model, text, &reconstruction.mean_outputs, progress)?;
        Ok(Report::new(saved, model.info(), &reconstruction, faithfulness))
    })
}
