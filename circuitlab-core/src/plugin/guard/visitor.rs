//! Visitors are the host's own code that a model calls: a panic in one must not cross the model's library either.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::{Device, Kind, Tensor};

use crate::{Action, Error, FrozenPass, HookPoint, HookVisitor, LanguageModel, ModelInfo, Past, Result};

/// Wraps a model on the host's side: a visitor that panics ends the forward pass, and its panic goes on in the host.
pub(in crate::plugin) fn shield(model: Box<dyn LanguageModel>) -> Box<dyn LanguageModel> {
    Box::new(Shielded(model))
}

#[derive(Debug)]
struct Shielded(Box<dyn LanguageModel>);

impl LanguageModel for Shielded {
    fn info(&self) -> &ModelInfo {
        self.0.info()
    }

    fn placement(&self) -> (Device, Kind) {
        self.0.placement()
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        self.0.hook_points()
    }

    fn forward(&self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        caught(visitor, |visitor| self.0.forward(tokens, visitor))
    }

    fn extend(&self, tokens: &Tensor, past: &mut Past, visitor: &mut dyn HookVisitor) -> Result<Option<Tensor>> {
        caught(visitor, |visitor| self.0.extend(tokens, past, visitor))
    }

    fn freeze<'a>(&'a self, tokens: &Tensor, visitor: &mut dyn HookVisitor) -> Result<Option<FrozenPass<'a>>> {
        caught(visitor, |visitor| self.0.freeze(tokens, visitor))
    }

    fn description(&self) -> String {
        self.0.description()
    }
}

/// Runs a pass with a visitor whose panic goes on after it.
fn caught<R>(visitor: &mut dyn HookVisitor, pass: impl FnOnce(&mut dyn HookVisitor) -> Result<R>) -> Result<R> {
    let mut caught = Caught { visitor, panic: None };
    let outcome = pass(&mut caught);
    match caught.panic {
        Some(panic) => resume_unwind(panic),
        None => outcome,
    }
}

struct Caught<'a> {
    visitor: &'a mut dyn HookVisitor,
    panic: Option<Box<dyn Any + Send>>,
}

impl HookVisitor for Caught<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        // A visitor that panics here panics in `visit` next, where the panic can be kept.
        catch_unwind(AssertUnwindSafe(|| self.visitor.wants(point))).unwrap_or(true)
    }

    fn visit(&mut self, point: HookPoint, value: &Tensor) -> Result<Action> {
        let visitor = &mut *self.visitor;
        catch_unwind(AssertUnwindSafe(|| if visitor.wants(point) { visitor.visit(point, value) } else { Ok(Action::Continue) }))
            .unwrap_or_else(|panic| {
                self.panic = Some(panic);
                Err(Error::Invalid(format!("the visitor panicked at `{point}`")))
            })
    }
}
