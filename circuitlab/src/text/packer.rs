//! Cuts tokens of documents into contexts as they come.

use std::collections::BTreeSet;

use circuitlab_core::ModelInfo;

use super::deal::{Deal, Dealt};
use super::layout::{Layout, PackOptions};
use super::packed::{PackedText, PlainWindow, Segment, Window};
use super::spool::SpoolWriter;
use crate::{Error, Result};

/// Makes a [`PackedText`] of documents that come in pieces.
pub struct Packer {
    layout: Layout,
    deal: Deal,
    special: BTreeSet<u32>,
    tokens: SpoolWriter<u32>,
    segments: SpoolWriter<Segment>,
    windows: SpoolWriter<PlainWindow>,
    /// The context that documents are joined in.
    joined: Filling,
    /// The document that is being added.
    document: Document,
}

/// A context that is being filled.
#[derive(Debug, Default)]
struct Filling {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Document {
    number: u32,
    dealt: Dealt,
    /// Tokens so far.
    position: u32,
    /// Contexts so far.
    contexts: u64,
    /// The context of its own that is being filled, where it shares none.
    own: Option<Filling>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("layout", &self.layout).field("contexts", &self.windows.len()).finish_non_exhaustive()
    }
}

impl Packer {
    /// Cuts as the options say; `special` are the tokens that [`Context::plain_tokens`](super::Context) leaves out.
    ///
    /// # Errors
    /// Options that do not fit the model.
    pub fn new(options: &PackOptions, model: &ModelInfo, special: impl IntoIterator<Item = u32>) -> Result<Self> {
        let none = Document { number: 0, dealt: Dealt::Others, position: 0, contexts: 0, own: None };
        Ok(Self {
            layout: options.layout(model)?,
            deal: options.deal,
            special: special.into_iter().collect(),
            tokens: SpoolWriter::new(),
            segments: SpoolWriter::new(),
            windows: SpoolWriter::new(),
            joined: Filling::default(),
            document: none,
        })
    }

    /// Whether a document's tokens are needed at all; `long` as [`begin`](Self::begin) is told.
    pub(super) fn wants(&self, number: u32, long: bool) -> bool {
        self.deal.of(number, long) != Dealt::Others
    }

    /// Contexts so far.
    pub(super) fn contexts(&self) -> usize {
        self.windows.len()
    }

    /// Begins a document.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub fn begin(&mut self, number: u32, long: bool) -> Result<()> {
        let dealt = self.deal.of(number, long);
        let shares = self.layout.joined.filter(|_| dealt == Dealt::Own);
        if let (Some(separator), Some([first, before, position])) = (shares, self.joined.segments.last().copied())
            && self.joined.tokens.last() != Some(&separator)
        {
            self.fill_joined(before, position + self.joined.tokens.len() as u32 - first, &[separator])?;
        }
        self.document = Document { number, dealt, position: 0, contexts: 0, own: shares.is_none().then(Filling::default) };
        Ok(())
    }

    /// Adds tokens of the document.
    ///
    /// # Errors
    /// More tokens in a document than 32 bits count, and a temporary file that cannot be written.
    pub fn add(&mut self, tokens: &[u32]) -> Result<()> {
        let Document { number, position, .. } = self.document;
        let Some(after) = u32::try_from(tokens.len()).ok().and_then(|more| position.checked_add(more)) else {
            return Err(Error::Invalid(format!("document {number} has more than 4 billion tokens; cut it into several")));
        };
        self.document.position = after;
        let Some(mut own) = self.document.own.take() else {
            return self.fill_joined(number, position, tokens);
        };
        let (mut rest, mut position) = (tokens, position);
        while !rest.is_empty() {
            let taken = own.fill(number, position, rest, self.layout.room);
            (rest, position) = (&rest[taken..], position + taken as u32);
            if own.tokens.len() == self.layout.room {
                self.put_own(&mut own)?;
            }
        }
        self.document.own = Some(own);
        Ok(())
    }

    /// Ends the document.
    ///
    /// # Errors
    /// A temporary file that cannot be written.
    pub fn end(&mut self) -> Result<()> {
        if let Some(eos) = self.layout.eos.filter(|_| self.document.position > 0) {
            self.add(&[eos])?;
        }
        match self.document.own.take() {
            Some(mut own) => self.put_own(&mut own),
            None => Ok(()),
        }
    }

    /// Ends the text.
    ///
    /// # Errors
    /// A temporary file that cannot be read back.
    pub fn finish(mut self) -> Result<PackedText> {
        let mut joined = std::mem::take(&mut self.joined);
        self.put(&mut joined)?;
        let (tokens, segments, windows) = (self.tokens.finish()?, self.segments.finish()?, self.windows.finish()?);
        Ok(PackedText { bos: self.layout.bos, tokens, segments, windows, skipped: 0 })
    }

    fn fill_joined(&mut self, number: u32, position: u32, tokens: &[u32]) -> Result<()> {
        let mut joined = std::mem::take(&mut self.joined);
        let (mut rest, mut position) = (tokens, position);
        while !rest.is_empty() {
            let taken = joined.fill(number, position, rest, self.layout.room);
            (rest, position) = (&rest[taken..], position + taken as u32);
            if joined.tokens.len() == self.layout.room {
                self.put(&mut joined)?;
            }
        }
        self.joined = joined;
        Ok(())
    }

    /// The end of a context of one document: it is kept if it is ours.
    fn put_own(&mut self, own: &mut Filling) -> Result<()> {
        let ours = self.document.dealt.has(self.document.contexts);
        self.document.contexts += 1;
        if ours {
            return self.put(own);
        }
        own.clear();
        Ok(())
    }

    fn put(&mut self, filled: &mut Filling) -> Result<()> {
        if filled.tokens.len() >= self.layout.min_tokens {
            let window = Window {
                start: self.tokens.len() as u64,
                first_segment: self.segments.len() as u64,
                segments: filled.segments.len() as u32,
                length: filled.tokens.len() as u32,
                plain: filled.tokens.iter().filter(|id| !self.special.contains(id)).count() as u32,
            };
            self.tokens.extend(&filled.tokens)?;
            self.segments.extend(&filled.segments)?;
            self.windows.extend(&[window.plain()])?;
        }
        filled.clear();
        Ok(())
    }
}

impl Filling {
    /// Takes as many tokens as there is room for, and says how many.
    fn fill(&mut self, document: u32, position: u32, tokens: &[u32], room: usize) -> usize {
        let taken = tokens.len().min(room.saturating_sub(self.tokens.len()));
        let at = self.tokens.len() as u32;
        // Tokens that go on where the last ones ended need no segment of their own.
        let goes_on = self.segments.last().is_some_and(|[first, of, begin]| *of == document && begin + (at - first) == position);
        if !goes_on {
            self.segments.push([at, document, position]);
        }
        self.tokens.extend_from_slice(&tokens[..taken]);
        taken
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.segments.clear();
    }
}
