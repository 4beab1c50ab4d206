//! The wrapper that all kinds share.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{catch_plugin, swallow};
use crate::{Error, Result};

/// A component and what is known of it.
pub(super) struct Guarded<T, F> {
    what: &'static str,
    pub(super) facts: F,
    /// Taken out when it is dropped, so that its own drop can be caught too.
    inner: Option<T>,
}

impl<T> Guarded<T, ()> {
    pub(super) fn new(what: &'static str, inner: T) -> Self {
        Self { what, facts: (), inner: Some(inner) }
    }

    /// Asks the component for what it must answer without an error.
    pub(super) fn ask<F>(mut self, facts: impl FnOnce(&T) -> F) -> Result<Guarded<T, F>> {
        let facts = self.call(|inner| Ok(facts(inner)))?;
        Ok(Guarded { what: self.what, facts, inner: self.inner.take() })
    }
}

impl<T, F> Guarded<T, F> {
    pub(super) const fn what(&self) -> &'static str {
        self.what
    }

    pub(super) fn call<'a, R>(&'a self, body: impl FnOnce(&'a T) -> Result<R>) -> Result<R> {
        let inner = self.inner.as_ref().ok_or_else(|| gone(self.what))?;
        catch_plugin(self.what, || body(inner))
    }

    pub(super) fn call_mut<R>(&mut self, body: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let what = self.what;
        let inner = self.inner.as_mut().ok_or_else(|| gone(what))?;
        catch_plugin(what, || body(inner))
    }
}

fn gone(what: &str) -> Error {
    Error::Invalid(format!("{what} is gone"))
}

impl<T, F> fmt::Debug for Guarded<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl<T, F> Drop for Guarded<T, F> {
    fn drop(&mut self) {
        let inner = self.inner.take();
        // Nobody waits for an answer here.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(inner))) {
            swallow(payload);
        }
    }
}
