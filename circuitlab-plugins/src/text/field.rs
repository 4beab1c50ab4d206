//! Names of fields and columns, with dots between those of nested ones.

use circuitlab_core::{Error, Result};

/// Checks the setting `field` of a source.
pub(super) fn check(source: &str, field: &str) -> Result<()> {
    if !field.split('.').any(str::is_empty) {
        return Ok(());
    }
    let message = format!("expected a name, or names with dots between, such as `meta.text`, got `{field}`");
    Err(Error::config(format!("text-source `{source}`, key `field`"), message))
}
