//! Guarded text sources.

use super::documents::guard_documents;
use super::guarded::Guarded;
use crate::{Documents, Result, TextInput, TextSource};

/// Guards a text source.
///
/// # Errors
/// A panic while it names its extensions.
pub fn text_source<T: TextSource + 'static>(what: &'static str, made: T) -> Result<Box<dyn TextSource>> {
    Ok(Box::new(Guarded::new(what, made).ask(T::extensions)?))
}

impl<T: TextSource> TextSource for Guarded<T, Vec<String>> {
    fn extensions(&self) -> Vec<String> {
        self.facts.clone()
    }

    fn documents(&self, input: TextInput) -> Result<Documents> {
        self.call(|source| source.documents(input)).map(|documents| guard_documents(self.what(), documents))
    }
}
