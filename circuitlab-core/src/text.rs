//! Where text comes from: documents out of a file.

use std::fmt::Debug;
use std::path::Path;

use crate::Result;

/// The documents of a file, in the file's order.
pub type Documents = Box<dyn Iterator<Item = Result<String>> + Send>;

/// Reads the documents of one kind of file.
pub trait TextSource: Debug + Send + Sync {
    /// The file extensions that this source reads, without the dot. Asked for once.
    fn extensions(&self) -> Vec<String>;

    /// Opens a file and gives its documents one by one.
    ///
    /// # Errors
    /// When the file cannot be opened; a later item is an error when the file cannot be read on or is not text.
    fn documents(&self, path: &Path) -> Result<Documents>;
}
