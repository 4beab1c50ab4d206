//! The one error type of this crate. It is made of std types only, so that it may cross into a plugin and back.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};

/// What every function of this crate that can fail gives back.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something a user, a file or a plugin got wrong. The message is one line: what, where, what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No plugin of this kind has that name.
    #[error("unknown {kind} `{name}`{}; known: {}", suggestion(.nearest.as_deref()), .known.join(", "))]
    Unknown {
        /// The kind that was looked for, such as `codec`.
        kind: &'static str,
        /// The name that the user wrote.
        name: String,
        /// The known name that is most like it, when one is.
        nearest: Option<String>,
        /// All names that would have been right.
        known: Vec<String>,
    },
    /// Two plugins of one kind share a name.
    #[error("{kind} `{name}` is registered twice: by {first} and by {second}")]
    Duplicate {
        /// The kind of both.
        kind: &'static str,
        /// The name that they share.
        name: String,
        /// The package that came first.
        first: String,
        /// The package that came second.
        second: String,
    },
    /// A config value is unknown, of the wrong type or out of range.
    #[error("{what}: {message}")]
    Config {
        /// Whose config it is, and the path of the key.
        what: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// A tensor has the wrong shape.
    #[error("{operation}: expected shape {expected}, got {got}")]
    Shape {
        /// The operation that checks.
        operation: &'static str,
        /// The shape that would be right, with the names of its axes.
        expected: String,
        /// The shape that came.
        got: String,
    },
    /// The operating system refused to read or write.
    #[error("cannot {action} `{}`", .path.display())]
    Io {
        /// A verb: `read`, `write`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own answer.
        source: io::Error,
    },
    /// A file is there, and is not what it should be.
    #[error("`{}`: {message}", .path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// A file was made with a plugin that is not here.
    #[error(
        "{what} was made with {kind} `{name}` of the package {package} {version}, which is not here; load its library with `--plugin FILE`, or link the package into the program"
    )]
    Missing {
        /// The file or folder.
        what: String,
        /// The plugin's kind.
        kind: String,
        /// The plugin's name.
        name: String,
        /// The package that provided it.
        package: String,
        /// That package's version.
        version: String,
    },
    /// A plugin library cannot be used.
    #[error("plugin `{}`: {message}", .path.display())]
    Plugin {
        /// The library's file.
        path: PathBuf,
        /// Why, and what would help.
        message: String,
    },
    /// An argument that no type could rule out.
    #[error("{0}")]
    Invalid(String),
    /// libtorch refused an operation; its own first line.
    #[error("libtorch: {0}")]
    Tensor(String),
    /// Code that should have returned an error panicked instead.
    #[error("{what} panicked: {message}")]
    Panicked {
        /// The plugin or the part of the program.
        what: String,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    /// An error about one key of a config.
    pub fn config(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config { what: what.into(), message: message.into() }
    }

    /// A file whose content is wrong.
    pub fn format(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Format { path: path.into(), message: message.into() }
    }

    /// A plugin library that cannot be used.
    pub fn plugin(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Plugin { path: path.into(), message: message.into() }
    }

    /// The same in types of std alone.
    fn plain(self) -> Self {
        match self {
            Self::Io { action, path, source } if source.get_ref().is_some() => {
                let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first_line(&source.to_string()).to_owned()));
                let kind = source.kind();
                // Leaked, since its drop could panic: there may be a second panic under way by then, which ends the process.
                std::mem::forget(source);
                let text = shown.unwrap_or_else(|payload| format!("an error that panics when it is shown: {}", swallow(payload)));
                Self::Io { action, path, source: io::Error::new(kind, text) }
            }
            other => other,
        }
    }

    /// For `map_err` on a file operation: `fs::read(path).map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// An unknown name, with the nearest known one found.
    pub fn unknown(kind: &'static str, name: &str, known: Vec<String>) -> Self {
        let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
        Self::Unknown { kind, name: name.to_owned(), nearest, known }
    }
}

impl From<tch::TchError> for Error {
    /// Keeps libtorch's first line: the rest is a C++ stack.
    fn from(error: tch::TchError) -> Self {
        Self::Tensor(first_line(&error.to_string()).to_owned())
    }
}

/// As [`catch_panic`], for code of a plugin: what it returns as an error holds nothing of its own library's any more. An
/// [`io::Error`] may carry a type that panics when it is shown or dropped, and such a panic must not cross either.
pub(crate) fn catch_plugin<T>(what: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_panic(what, || body().map_err(Error::plain))
}

/// Runs `body` and turns a panic in it, be it ours or libtorch's, into an error that names `what`.
///
/// # Errors
/// The body's own, or [`Error::Panicked`].
pub fn catch_panic<T, E: From<Error>>(what: &str, body: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(Error::Panicked { what: what.to_owned(), message: swallow(payload) }.into()))
}

/// The first line of a panic's message. A payload that is no text is leaked: dropping it could panic again.
pub(crate) fn swallow(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => first_line(&text).to_owned(),
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().map_or("no message", |text| first_line(text)).to_owned();
            std::mem::forget(payload);
            text
        }
    }
}

/// The candidate that `name` is most likely a misspelling of: the closest by edit distance, when it is close at all.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count().max(3) / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}

/// libtorch puts its C++ stack after the first line, and `\n` inside debug output is escaped.
fn first_line(text: &str) -> &str {
    let end = text.find("\\nException raised").or_else(|| text.find('\n')).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_answered_with_the_nearest_known_one() {
        let error = Error::unknown("codec", "zst", vec!["int8".into(), "none".into(), "zstd".into()]);
        assert_eq!(error.to_string(), "unknown codec `zst`, did you mean `zstd`?; known: int8, none, zstd");
        assert_eq!(nearest("lamda", ["lambda", "mu"]), Some("lambda"));
        assert_eq!(nearest("completely-else", ["lambda", "mu"]), None);
    }

    #[test]
    fn a_panic_becomes_an_error_that_names_its_place() {
        let got: Result<()> = catch_panic("codec `x`", || panic!("boom"));
        assert_eq!(got.expect_err("panicked").to_string(), "codec `x` panicked: boom");
    }

    #[test]
    fn an_error_of_a_plugin_holds_nothing_of_its_own() {
        #[derive(Debug)]
        struct Bomb;
        impl std::fmt::Display for Bomb {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                panic!("shown")
            }
        }
        impl std::error::Error for Bomb {}
        let got: Result<()> = catch_plugin("codec `x`", || Err(Error::io("read", "a")(io::Error::other(Bomb))));
        let Err(Error::Io { source, .. }) = got else { panic!("another error") };
        assert_eq!(source.to_string(), "an error that panics when it is shown: shown");
        let got: Result<()> = catch_plugin("codec `x`", || Err(Error::io("read", "a")(io::Error::other("gone"))));
        assert!(matches!(got, Err(Error::Io { source, .. }) if source.to_string() == "gone"));
    }

    #[test]
    fn libtorch_errors_are_cut_at_their_first_line() {
        let a = tch::Tensor::zeros([2, 3], (tch::Kind::Float, tch::Device::Cpu));
        let error = Error::from(a.f_matmul(&a).expect_err("shapes do not fit"));
        assert!(!error.to_string().contains('\n'), "{error}");
        assert!(error.to_string().contains("mat1 and mat2"), "{error}");
    }
}
