//! Progress told to another process: a rank's to the one that launched it, which shows it.
//!
//! News are lines of stderr among all others, so that they need no connection of their own and come in order with what else is said.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use circuitlab::Progress;
use serde::{Deserialize, Serialize};

/// What a process does with its progress: [`TELL`] or [`KEEP`]; shows it where this is not set.
pub(crate) const VARIABLE: &str = "CIRCUITLAB_PROGRESS";

/// Tells it on stderr, in lines for a program.
pub(crate) const TELL: &str = "tell";

/// Keeps it to itself.
pub(crate) const KEEP: &str = "keep";

/// What stands before news in a line: no text that people read has this character.
const MARK: &[u8] = b"\x1ecircuitlab-progress ";

/// News come no more often than this: nobody sees more.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum News {
    /// A piece of work begins.
    Begin { task: String, total: u64, unit: String },
    /// So much of it is done.
    At { done: u64, note: String },
    /// It is over.
    End,
}

impl News {
    /// The news in a line, and what stands before them: half a line that somebody else wrote.
    pub(crate) fn find(line: &[u8]) -> Option<(&[u8], Self)> {
        let at = line.windows(MARK.len()).position(|window| window == MARK)?;
        Some((&line[..at], serde_json::from_slice(&line[at + MARK.len()..]).ok()?))
    }

    /// The line that is found again.
    fn line(&self) -> Vec<u8> {
        let mut line = MARK.to_vec();
        line.extend(serde_json::to_vec(self).unwrap_or_default());
        line.push(b'\n');
        line
    }

    fn tell(&self) {
        // Where stderr is gone, nobody is left to tell.
        let _ = io::stderr().write_all(&self.line());
    }
}

/// Tells progress on stderr.
#[derive(Debug, Default)]
pub(crate) struct Teller(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    at: Option<Instant>,
    /// What was too soon to be told.
    kept: Option<News>,
}

impl Teller {
    fn with(&self, act: impl FnOnce(&mut Told)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Teller {
    fn begin(&self, task: &str, total: u64, unit: &'static str) {
        self.with(|told| {
            *told = Told::default();
            News::Begin { task: task.to_owned(), total, unit: unit.to_owned() }.tell();
        });
    }

    fn at(&self, done: u64, note: &str) {
        self.with(|told| {
            let news = News::At { done, note: note.to_owned() };
            if told.at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
                told.kept = Some(news);
                return;
            }
            *told = Told { at: Some(Instant::now()), kept: None };
            news.tell();
        });
    }

    fn end(&self) {
        self.with(|told| {
            if let Some(news) = told.kept.take() {
                news.tell();
            }
            News::End.tell();
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn news_are_found_behind_half_a_line() {
        let news = News::At { done: 3, note: "loss 2\n\u{1e}\"x\"".into() };
        let line = [b"half a line".as_slice(), &news.line()].concat();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert_eq!(News::find(&line), Some((b"half a line".as_slice(), news)));
        assert_eq!(News::find(b"loss 2\n"), None);
        assert_eq!(News::find(b"\x1ecircuitlab-progress {\"at\":"), None);
    }

    proptest! {
        #[test]
        fn any_news_are_found_again(task in ".*", total: u64, note in ".*", done: u64) {
            for news in [News::Begin { task, total, unit: "rows".into() }, News::At { done, note }, News::End] {
                let line = news.line();
                prop_assert_eq!(News::find(&line), Some((b"".as_slice(), news)));
            }
        }

        #[test]
        fn no_line_is_a_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            News::find(&[b"\x1ecircuitlab-progress ".as_slice(), &line].concat());
            News::find(&line);
        }
    }
}
