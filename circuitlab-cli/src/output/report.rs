//! Errors, on stderr: the chain of causes in one line, then a hint if there is one.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};

/// What the user can do about an error; travels in the error's chain.
#[derive(Debug, Clone)]
pub struct Hint(String);

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds a [`Hint`] to an error.
pub trait WithHint<T> {
    /// Says what the user can do, in a `hint:` line of its own.
    ///
    /// # Errors
    /// The error that it is called on.
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHint<T> for Result<T, E> {
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| error.into().context(Hint(text.into())))
    }
}

/// Prints an error to stderr: `error: what: why`, and `hint: ...`.
pub fn report(error: &anyhow::Error) {
    // Where stderr is gone, nobody is left to tell.
    let _ = writeln!(io::stderr(), "{}", text(error));
}

/// The line or lines that [`report()`] prints.
pub fn text(error: &anyhow::Error) -> String {
    let line = format!("error: {}", chain(error));
    match error.downcast_ref::<Hint>() {
        Some(hint) => format!("{line}\nhint: {}", one_line(&hint.0)),
        None => line,
    }
}

/// The chain of causes in one line, without the hint.
pub fn chain(error: &anyhow::Error) -> String {
    let hint = error.downcast_ref::<Hint>().map(|hint| one_line(&hint.0));
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = one_line(&cause.to_string());
        // Many libraries repeat their cause's message in their own.
        let told = parts.iter().any(|earlier| earlier.contains(&part));
        if !told && hint.as_ref() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

fn one_line(text: &str) -> String {
    let joined = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    joined.chars().fold(String::with_capacity(joined.len()), |mut shown, one| {
        // What a plugin or a file brings must not steer the terminal, nor turn the direction of what follows.
        if one.is_control() || matches!(one, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            shown.extend(one.escape_default());
        } else {
            shown.push(one);
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_chain_is_one_line() {
        let source = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = circuitlab_core::Error::io("read", "a.toml")(source);
        let error = Err::<(), _>(circuitlab::Error::from(error)).context("cannot start the run").expect_err("an error");
        assert_eq!(text(&error), "error: cannot start the run: cannot read `a.toml`: no such file");
    }

    #[test]
    fn repeated_causes_are_told_once_and_lines_joined() {
        let error = anyhow!("disk\n  full").context("cannot write: disk; full").context("cannot write: disk; full");
        assert_eq!(text(&error), "error: cannot write: disk; full");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let error =
            Err::<(), _>(anyhow!("codec `x`: \u{1b}]0;title\u{7}\tred\u{9b}31m\u{202e} Grüße, 数")).hint("\u{8}try").expect_err("an error");
        let shown = "error: codec `x`: \\u{1b}]0;title\\u{7}\\tred\\u{9b}31m\\u{202e} Grüße, 数\nhint: \\u{8}try";
        assert_eq!(text(&error), shown);
    }

    #[test]
    fn a_hint_has_its_own_line() {
        let error = Err::<(), _>(anyhow!("no cache")).hint("run `circuitlab cache` first").context("cannot train").expect_err("an error");
        assert_eq!(text(&error), "error: cannot train: no cache\nhint: run `circuitlab cache` first");
    }
}
