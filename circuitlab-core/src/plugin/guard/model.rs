//! Guarded language models.

use tch::{Device, Kind, Tensor};

use super::frozen::guard_pass;
use super::guarded::Guarded;
use crate::{FrozenPass, HookPoint, HookVisitor, LanguageModel, ModelInfo, Past, Result};

/// What a model answers without an error.
pub(super) struct Facts {
    info: ModelInfo,
    placement: (Device, Kind),
    hook_points: Vec<HookPoint>,
    description: String,
}

/// Guards a language model.
///
/// # Errors
/// A panic while it describes itself.
pub fn model<T: LanguageModel + 'static>(what: &'static str, made: T) -> Result<Box<dyn LanguageModel>> {
    let facts = |model: &T| Facts {
        info: model.info().clone(),
        placement: model.placement(),
        hook_points: model.hook_points(),
        description: model.description(),
    };
    Ok(Box::new(Guarded::new(what, made).ask(facts)?))
}

impl<T: LanguageModel> LanguageModel for Guarded<T, Facts> {
    fn info(&self) -> &ModelInfo {
        &self.facts.info
    }

    fn placement(&self) -> (Device, Kind) {
        self.facts.placement
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        self.facts.hook_points.clone()
    }

    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        self.call(|model| model.forward(tokens, visitor))
    }

    fn extend(&self, tokens: &Tensor, past: &mut Past, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        self.call(|model| model.extend(tokens, past, visitor))
    }

    fn freeze<'a>(&'a self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<FrozenPass<'a>>> {
        let pass = self.call(|model| model.freeze(tokens, visitor))?;
        Ok(pass.map(|pass| guard_pass(self.what(), pass)))
    }

    fn description(&self) -> String {
        self.facts.description.clone()
    }
}
