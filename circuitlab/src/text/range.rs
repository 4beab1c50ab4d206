//! Which part of each file: the rest is held out.

use std::fmt;
use std::str::FromStr;

use circuitlab_core::Content;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How far a cut may move to reach the end of its line.
const LONGEST_LINE_BYTES: usize = 4096;

/// A part of each text file, as fractions of its documents' bytes: `0..0.95` to train on, `0.95..1` to evaluate on.
///
/// Cuts move on to the end of the line they fall into, so that `0..0.95` and `0.95..1` share nothing and miss nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TextRange {
    start: f64,
    end: f64,
}

impl TextRange {
    /// Everything.
    pub const ALL: Self = Self { start: 0.0, end: 1.0 };

    /// The part from `start` to `end`.
    ///
    /// # Errors
    /// Anything but `0 <= start < end <= 1`.
    pub fn new(start: f64, end: f64) -> Result<Self> {
        if 0.0 <= start && start < end && end <= 1.0 {
            return Ok(Self { start, end });
        }
        Err(Error::Invalid(format!("range `{start}..{end}`: expected two fractions in order, such as `0..0.95`")))
    }

    /// Whether nothing is held out.
    pub fn is_all(self) -> bool {
        self == Self::ALL
    }

    /// Walks over documents of so many bytes in total and cuts this part out of them.
    pub(super) fn cutter(self, total_bytes: u64) -> Cutter {
        let at = |fraction: f64| (total_bytes as f64 * fraction) as u64;
        Cutter { start: at(self.start), end: if self.end < 1.0 { at(self.end) } else { u64::MAX }, seen: 0 }
    }
}

impl Default for TextRange {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for TextRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl FromStr for TextRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once("..").and_then(|(start, end)| Some((start.trim().parse().ok()?, end.trim().parse().ok()?)));
        let (start, end) =
            numbers.ok_or_else(|| Error::Invalid(format!("range `{text}`: expected two fractions, such as `0..0.95` or `0.95..1`")))?;
        Self::new(start, end)
    }
}

impl TryFrom<String> for TextRange {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<TextRange> for String {
    fn from(range: TextRange) -> Self {
        range.to_string()
    }
}

/// Cuts a range out of documents that pass by.
#[derive(Debug)]
pub(super) struct Cutter {
    start: u64,
    end: u64,
    seen: u64,
}

impl Cutter {
    /// The part of the next piece that lies in the range; it may be empty. Tokens count four bytes each.
    pub(super) fn cut(&mut self, piece: Content) -> Content {
        match piece {
            Content::Text(mut text) => {
                let (start, end) = self.within(text.len(), |place| snap(&text, place));
                text.truncate(end);
                text.drain(..start);
                Content::Text(text)
            }
            Content::Tokens(mut ids) => {
                let (start, end) = self.within(4 * ids.len(), |place| place.div_ceil(4));
                ids.truncate(end);
                ids.drain(..start);
                Content::Tokens(ids)
            }
            skipped @ Content::Skipped(_) => skipped,
        }
    }

    /// Where the range begins and ends in a piece of so many bytes that comes next.
    fn within(&mut self, bytes: usize, snap: impl Fn(usize) -> usize) -> (usize, usize) {
        let place = |at: u64| snap(at.saturating_sub(self.seen).min(bytes as u64) as usize);
        let part = (place(self.start), place(self.end));
        self.seen += bytes as u64;
        part
    }
}

/// The end of the line in which `place` lies, or the next whole character where the line is too long.
fn snap(document: &str, place: usize) -> usize {
    let place = document.ceil_char_boundary(place);
    if place == 0 || place == document.len() || document.as_bytes()[place - 1] == b'\n' {
        return place;
    }
    let line = document.as_bytes()[place..].iter().take(LONGEST_LINE_BYTES);
    line.enumerate().find(|(_, byte)| **byte == b'\n').map_or(place, |(length, _)| place + length + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(documents: &[String], range: TextRange) -> Vec<String> {
        let mut cutter = range.cutter(documents.iter().map(|document| document.len() as u64).sum());
        let cut = documents.iter().map(|document| match cutter.cut(Content::Text(document.clone())) {
            Content::Text(text) => text,
            other => panic!("no text: {other:?}"),
        });
        cut.collect()
    }

    #[test]
    fn tokens_count_four_bytes() {
        let cut = |range: &str| {
            let mut cutter = range.parse::<TextRange>().expect("a range").cutter(40);
            [vec![1, 2, 3], vec![4, 5, 6, 7, 8, 9, 10]].map(|ids| cutter.cut(Content::Tokens(ids)))
        };
        assert_eq!(cut("0..0.55"), [Content::Tokens(vec![1, 2, 3]), Content::Tokens(vec![4, 5, 6])]);
        assert_eq!(cut("0.55..1"), [Content::Tokens(vec![]), Content::Tokens(vec![7, 8, 9, 10])]);
    }

    proptest! {
        #[test]
        fn complementary_ranges_miss_and_share_nothing(documents in prop::collection::vec("[a-zäß\n]{0,40}", 0..6), at in 0.01_f64..0.99) {
            let first = cut(&documents, TextRange::new(0.0, at).expect("in order"));
            let second = cut(&documents, TextRange::new(at, 1.0).expect("in order"));
            let joined: Vec<String> = first.iter().zip(&second).map(|(a, b)| format!("{a}{b}")).collect();
            prop_assert_eq!(&joined, &documents);
            prop_assert_eq!(&cut(&documents, TextRange::ALL), &documents);
        }
    }

    #[test]
    fn cuts_fall_on_line_ends() {
        let documents = ["eins\nzwei\ndrei\n".to_owned()];
        assert_eq!(cut(&documents, TextRange::new(0.0, 0.4).expect("in order")), ["eins\nzwei\n"]);
        assert_eq!(cut(&documents, TextRange::new(0.4, 1.0).expect("in order")), ["drei\n"]);
    }

    #[test]
    fn ranges_are_read_and_written() {
        let range: TextRange = "0.95..1".parse().expect("a range");
        assert_eq!((range.to_string().as_str(), range.is_all()), ("0.95..1", false));
        for wrong in ["", "0.5", "1..0", "0..1.5", "-1..1", "a..b", "NaN..1", "0.5..0.5"] {
            let error = wrong.parse::<TextRange>().expect_err("no range").to_string();
            assert!(error.starts_with("range `") && error.contains("such as"), "{error}");
        }
    }
}
