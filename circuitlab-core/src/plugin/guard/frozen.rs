//! Guarded adjoints, which live longer than the call that gives them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use crate::error::{catch_plugin, swallow};
use crate::{Adjoint, Error, FrozenPass, Passage, Result, Span};

/// Guards what a model gives for a prompt.
pub(super) fn guard_pass<'a>(what: &'static str, pass: FrozenPass<'a>) -> FrozenPass<'a> {
    FrozenPass { adjoint: Box::new(Guarded { what, inner: Some(pass.adjoint) }), ..pass }
}

struct Guarded<'a> {
    what: &'static str,
    /// Taken out when it is dropped, so that its own drop can be caught too.
    inner: Option<Box<dyn Adjoint + 'a>>,
}

impl Guarded<'_> {
    fn call<R>(&self, body: impl FnOnce(&dyn Adjoint) -> Result<R>) -> Result<R> {
        let inner = self.inner.as_deref().ok_or_else(|| Error::Invalid(format!("{} is gone", self.what)))?;
        catch_plugin(self.what, || body(inner))
    }
}

impl Adjoint for Guarded<'_> {
    fn pull(&self, passage: Passage, gradient: &Tensor, positions: &Tensor) -> Result<Tensor> {
        self.call(|adjoint| adjoint.pull(passage, gradient, positions))
    }

    fn constant(&self, passage: Passage, positions: &Tensor) -> Result<Tensor> {
        self.call(|adjoint| adjoint.constant(passage, positions))
    }

    fn attention(&self, layer: usize, gradient: &Tensor, spans: &[Span]) -> Result<Tensor> {
        self.call(|adjoint| adjoint.attention(layer, gradient, spans))
    }

    fn heads(&self, layer: usize, gradient: &Tensor, position: i64) -> Result<Tensor> {
        self.call(|adjoint| adjoint.heads(layer, gradient, position))
    }

    fn attention_constant(&self, layer: usize) -> Result<Tensor> {
        self.call(|adjoint| adjoint.attention_constant(layer))
    }
}

impl fmt::Debug for Guarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        let inner = self.inner.take();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(inner))) {
            swallow(payload);
        }
    }
}
