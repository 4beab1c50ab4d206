//! Guarded documents: a text source's file is read long after the source has answered.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{catch_plugin, swallow};
use crate::{Documents, Piece, Result};

/// After a panic, which is the last item, there are no more documents.
pub(super) fn guard_documents(what: &'static str, documents: Documents) -> Documents {
    Box::new(Guarded { what, documents: Some(documents) })
}

struct Guarded {
    what: &'static str,
    documents: Option<Documents>,
}

impl Iterator for Guarded {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let documents = self.documents.as_mut()?;
        match catch_plugin(self.what, || documents.next().transpose()) {
            Ok(next) => next.map(Ok),
            Err(panicked) => {
                self.close();
                Some(Err(panicked))
            }
        }
    }
}

impl Guarded {
    fn close(&mut self) {
        let documents = self.documents.take();
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(documents))) {
            swallow(payload);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.close();
    }
}
