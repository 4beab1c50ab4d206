//! Contexts: pieces of documents that fit the model.

use super::spool::Spool;

/// Where some tokens of a context come from: `[first token of them in the context, document, position of that token]`.
pub(super) type Segment = [u32; 3];

/// A context in the spools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Its first token.
    pub(super) start: u64,
    /// Its first segment.
    pub(super) first_segment: u64,
    pub(super) segments: u32,
    /// Its tokens, BOS excluded.
    pub(super) length: u32,
    /// Those of them that are not special.
    pub(super) plain: u32,
}

/// The same in plain numbers.
pub(super) type PlainWindow = [u64; 4];

impl Window {
    pub(super) fn plain(self) -> PlainWindow {
        [self.start, self.first_segment, u64::from(self.length) << 32 | u64::from(self.segments), u64::from(self.plain)]
    }

    pub(super) fn of(plain: PlainWindow) -> Self {
        let [start, first_segment, counts, plain] = plain;
        Self { start, first_segment, segments: counts as u32, length: (counts >> 32) as u32, plain: plain as u32 }
    }
}

/// The contexts of a text. All of it lies in temporary files, so a text may be larger than memory.
#[derive(Debug, Default)]
pub struct PackedText {
    pub(super) bos: Option<u32>,
    pub(super) tokens: Spool<u32>,
    pub(super) segments: Spool<Segment>,
    pub(super) windows: Spool<PlainWindow>,
    pub(super) skipped: u64,
}

/// One context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// The token that begins it, where there is one.
    pub bos: Option<u32>,
    /// The tokens after that.
    pub tokens: &'a [u32],
    /// Where they come from; there is at least one.
    segments: &'a [Segment],
    /// How many of the tokens are not special.
    pub plain_tokens: usize,
}

/// Where a token comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The number of its document: documents are counted through all files, those outside the range included.
    pub document: u32,
    /// Its place in the document's tokens (in those of the part inside the range). A token that stands between documents has the
    /// place after the last of the document before.
    pub position: u32,
}

impl Context<'_> {
    /// What the model is given: BOS and the tokens.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.bos.into_iter().chain(self.tokens.iter().copied())
    }

    /// How many positions it takes.
    pub fn positions(&self) -> usize {
        self.tokens.len() + usize::from(self.bos.is_some())
    }

    /// Where the token `index` after BOS comes from.
    pub fn origin(&self, index: usize) -> Origin {
        let number = self.segments.partition_point(|[first, ..]| *first as usize <= index);
        let [first, document, position] = number.checked_sub(1).and_then(|last| self.segments.get(last)).copied().unwrap_or_default();
        Origin { document, position: position + (index as u32).saturating_sub(first) }
    }
}

impl PackedText {
    /// How many contexts.
    pub fn len(&self) -> usize {
        self.windows.as_slice().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens are in contexts, BOS excluded.
    pub fn tokens(&self) -> u64 {
        self.windows.as_slice().iter().map(|window| u64::from(Window::of(*window).length)).sum()
    }

    /// How many documents were left out because they could not be read, where the user allowed that.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// One context, for `index < len`.
    ///
    /// # Panics
    /// When there is no such context.
    pub fn context(&self, index: usize) -> Context<'_> {
        let Window { start, first_segment, segments, length, plain } = Window::of(self.windows.as_slice()[index]);
        Context {
            bos: self.bos,
            tokens: &self.tokens.as_slice()[start as usize..][..length as usize],
            segments: &self.segments.as_slice()[first_segment as usize..][..segments as usize],
            plain_tokens: plain as usize,
        }
    }

    /// All contexts, in the text's order.
    pub fn iter(&self) -> impl Iterator<Item = Context<'_>> {
        (0..self.len()).map(|index| self.context(index))
    }
}
