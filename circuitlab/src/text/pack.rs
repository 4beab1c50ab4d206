//! Contexts: pieces of documents that fit the model.

use circuitlab_core::ModelInfo;

use super::range::TextRange;
use super::source::SourceFile;
use super::tokenizer::Tokenizer;
use crate::progress::Progress;
use crate::{Error, Result};

/// Documents are handed to the tokenizer in lots of about this size, so that all cores have work.
const LOT_BYTES: usize = 4 << 20;

/// How documents are cut into contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PackOptions {
    /// Positions of a context, BOS included.
    pub context: usize,
    /// Contexts with fewer tokens, BOS excluded, are left out: only the last of a document can be so short.
    pub min_tokens: usize,
    /// The part of each file.
    pub range: TextRange,
}

impl PackOptions {
    /// Checks them against a model.
    ///
    /// # Errors
    /// A context that is longer than the model's or holds no token, and a least number of tokens that no context reaches.
    pub fn check(&self, model: &ModelInfo) -> Result<()> {
        let least = 1 + usize::from(model.bos.is_some());
        let invalid = |message| Err(Error::Invalid(message));
        if self.context < least || self.context > model.context {
            let longest = model.context;
            return invalid(format!("`context` is {}; the model `{}` takes {least} to {longest}", self.context, model.name));
        }
        let most = self.context + 1 - least;
        if self.min_tokens == 0 || self.min_tokens > most {
            return invalid(format!("`min_tokens` is {}; with a context of {} expected 1 to {most}", self.min_tokens, self.context));
        }
        Ok(())
    }
}

/// The contexts of a text. Tokens are kept once and contexts are ranges of them, so 1 GB of text takes about that much.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedText {
    bos: Option<u32>,
    tokens: Vec<u32>,
    windows: Vec<Window>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    start: usize,
    length: u32,
    document: u32,
    position: u32,
}

/// One context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context<'a> {
    /// The token that begins it, where the model has one.
    pub bos: Option<u32>,
    /// The tokens after that.
    pub tokens: &'a [u32],
    /// The number of its document: documents are counted through all files, those outside the range included.
    pub document: u32,
    /// The place of its first token after BOS in the document's tokens (in those of the part inside the range).
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
}

impl PackedText {
    /// Cuts documents that are tokens already.
    ///
    /// # Errors
    /// More documents, or more tokens in one, than 32 bits count.
    pub fn new(bos: Option<u32>, options: &PackOptions, documents: impl IntoIterator<Item = Vec<u32>>) -> Result<Self> {
        let mut packed = Self { bos, ..Self::default() };
        for (document, tokens) in documents.into_iter().enumerate() {
            packed.push(document, &tokens, options)?;
        }
        Ok(packed)
    }

    /// How many contexts.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// How many tokens are in contexts, BOS excluded.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| u64::from(window.length)).sum()
    }

    /// One context, for `index < len`.
    ///
    /// # Panics
    /// When there is no such context.
    pub fn context(&self, index: usize) -> Context<'_> {
        let Window { start, length, document, position } = self.windows[index];
        Context { bos: self.bos, tokens: &self.tokens[start..start + length as usize], document, position }
    }

    /// All contexts, in the text's order.
    pub fn iter(&self) -> impl Iterator<Item = Context<'_>> {
        (0..self.len()).map(|index| self.context(index))
    }

    fn push(&mut self, document: usize, tokens: &[u32], options: &PackOptions) -> Result<()> {
        let Ok((document, _)) = u32::try_from(document).and_then(|document| Ok((document, u32::try_from(tokens.len())?))) else {
            return Err(Error::Invalid("the text has more documents, or more tokens in one document, than 4 billion".to_owned()));
        };
        let begin = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        let room = options.context.saturating_sub(usize::from(self.bos.is_some())).max(1);
        for position in (0..tokens.len()).step_by(room) {
            let length = room.min(tokens.len() - position);
            if length >= options.min_tokens {
                self.windows.push(Window { start: begin + position, length: length as u32, document, position: position as u32 });
            }
        }
        Ok(())
    }
}

/// Reads, encodes and cuts files.
///
/// # Errors
/// Options that do not fit the model, files that cannot be read, and text without a single token.
pub fn pack(
    files: &[SourceFile],
    tokenizer: &Tokenizer,
    model: &ModelInfo,
    options: &PackOptions,
    progress: &dyn Progress,
) -> Result<PackedText> {
    options.check(model)?;
    let mut packer =
        Packer { tokenizer, options, packed: PackedText { bos: model.bos, ..PackedText::default() }, lot: Vec::new(), documents: 0 };
    progress.begin("tokenising", files.len() as u64, "files");
    for (done, file) in files.iter().enumerate() {
        packer.add(file)?;
        progress.at(done as u64 + 1, "");
    }
    packer.flush()?;
    progress.end();
    if packer.packed.is_empty() {
        let names: Vec<String> = files.iter().map(|file| format!("`{}`", file.path().display())).collect();
        let range = if options.range.is_all() { String::new() } else { format!(" in the range {}", options.range) };
        return Err(Error::Invalid(format!("there is no context of text{range} in {}", names.join(", "))));
    }
    Ok(packer.packed)
}

struct Packer<'a> {
    tokenizer: &'a Tokenizer,
    options: &'a PackOptions,
    packed: PackedText,
    /// Documents that wait for the tokenizer.
    lot: Vec<String>,
    /// How many were tokenised before those.
    documents: usize,
}

impl Packer<'_> {
    fn add(&mut self, file: &SourceFile) -> Result<()> {
        let range = self.options.range;
        let mut total_bytes = 0;
        if !range.is_all() {
            for document in file.documents()? {
                total_bytes += document?.len() as u64;
            }
        }
        let mut cutter = range.cutter(total_bytes);
        let mut waiting_bytes: usize = self.lot.iter().map(String::len).sum();
        for document in file.documents()? {
            let document = document?;
            let part = cutter.cut(&document);
            waiting_bytes += part.len();
            // Documents outside the range are counted, so that a number means the same document in every range.
            self.lot.push(if part.len() == document.len() { document } else { part.to_owned() });
            if waiting_bytes >= LOT_BYTES {
                self.flush()?;
                waiting_bytes = 0;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for tokens in self.tokenizer.encode_all(std::mem::take(&mut self.lot))? {
            self.packed.push(self.documents, &tokens, self.options)?;
            self.documents += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: PackOptions = PackOptions { context: 4, min_tokens: 2, range: TextRange::ALL };

    #[test]
    fn contexts_stay_within_documents_and_short_ends_go() {
        let packed = PackedText::new(Some(9), &OPTIONS, [vec![1, 2, 3, 4, 5], vec![], vec![6, 7, 8, 1]]).expect("few");
        let contexts: Vec<_> =
            packed.iter().map(|context| (context.ids().collect::<Vec<_>>(), context.document, context.position)).collect();
        assert_eq!(contexts, [(vec![9, 1, 2, 3], 0, 0), (vec![9, 4, 5], 0, 3), (vec![9, 6, 7, 8], 2, 0)]);
        assert_eq!(packed.tokens(), 8);
    }

    proptest! {
        #[test]
        fn every_token_is_in_one_context(
            documents in prop::collection::vec(prop::collection::vec(0_u32..50, 0..30), 0..6),
            bos in prop::option::of(Just(99_u32)),
            context in 2_usize..9,
        ) {
            let packed = PackedText::new(bos, &PackOptions { context, min_tokens: 1, ..OPTIONS }, documents.clone()).expect("few");
            let mut back = vec![Vec::new(); documents.len()];
            for piece in packed.iter() {
                prop_assert!(piece.positions() <= context);
                prop_assert_eq!(piece.ids().count(), piece.positions());
                let document = &mut back[piece.document as usize];
                prop_assert_eq!(document.len(), piece.position as usize);
                document.extend_from_slice(piece.tokens);
            }
            prop_assert_eq!(back, documents);
        }
    }
}
