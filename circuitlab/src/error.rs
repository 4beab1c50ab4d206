//! The one error type of this crate.

use std::path::PathBuf;

/// What every function of this crate that can fail gives back.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one line: what, where, what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the core: files, configs, shapes, plugins.
    #[error(transparent)]
    Core(#[from] circuitlab_core::Error),
    /// Two things that must belong together do not: a cache and a model, a CLT and its hooks.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// What was compared, and where both sides come from.
        what: String,
        /// The value that would be right.
        expected: String,
        /// The value that came.
        got: String,
    },
    /// The place of a new file or folder is taken.
    #[error("`{}` exists already; {hint}", .path.display())]
    Exists {
        /// The place.
        path: PathBuf,
        /// What the user can do.
        hint: String,
    },
    /// A tokenizer file that cannot be used, or text that it cannot encode.
    #[error("tokenizer `{}`: {message}", .path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The library's own words.
        message: String,
    },
    /// A repository of the Hugging Face hub that cannot be had.
    #[error("hub repository {repository}: {message}")]
    Hub {
        /// Which, and at which revision.
        repository: String,
        /// Which file where it is one, why, and what would help.
        message: String,
    },
    /// Anything else that the user can put right.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Two things that do not belong together.
    #[allow(clippy::needless_pass_by_value, reason = "callers pass literals and numbers as they are")]
    pub fn mismatch(what: impl Into<String>, expected: impl ToString, got: impl ToString) -> Self {
        Self::Mismatch { what: what.into(), expected: expected.to_string(), got: got.to_string() }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Core(error.into())
    }
}
