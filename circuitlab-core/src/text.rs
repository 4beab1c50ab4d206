//! Where text comes from: documents out of a file, in pieces that fit into memory.

use std::fmt::{self, Debug};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// About how many bytes a piece of a document has at most. Tokens count four bytes each.
pub const PIECE_BYTES: usize = 4 << 20;

/// The documents of a file in the file's order, each as one piece or, where it is long, as several in a row.
pub type Documents = Box<dyn Iterator<Item = Result<Piece>> + Send>;

/// A document, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it holds. The pieces of a document, put together, are the document.
    pub content: Content,
    /// Whether it ends its document. Such a piece may be empty if others came before it.
    pub last: bool,
}

/// What a piece holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text, which is still to be tokenised.
    Text(String),
    /// Ids of tokens, for documents that are tokens already.
    Tokens(Vec<u32>),
    /// Nothing: what should have been a document, and was left out because the user asked for it; one line that says what was
    /// wrong and where. It counts as no document.
    Skipped(String),
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Piece {
    /// How many bytes it has; tokens count four each.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Tokens(ids) => 4 * ids.len(),
            Content::Skipped(_) => 0,
        }
    }

    /// Cuts a whole document into pieces of at most [`PIECE_BYTES`]. An empty document has none; what was skipped is told on.
    pub fn cut(document: Content) -> impl Iterator<Item = Self> + Send {
        let told = matches!(document, Content::Skipped(_));
        let mut rest = Some(Self { content: document, last: true }).filter(|whole| told || whole.bytes() > 0);
        std::iter::from_fn(move || {
            let mut piece = rest.take()?;
            let after = match &mut piece.content {
                Content::Text(text) => Content::Text(text.split_off(piece_end(text))),
                Content::Tokens(ids) => Content::Tokens(ids.split_off(ids.len().min(PIECE_BYTES / 4))),
                Content::Skipped(_) => return Some(piece),
            };
            let after = Self { content: after, last: true };
            if after.bytes() > 0 {
                piece.last = false;
                rest = Some(after);
            }
            Some(piece)
        })
    }
}

/// Where the first piece of a text ends: its end if it is no longer than [`PIECE_BYTES`], or else the end of a line, or of a
/// character where the lines are long.
pub fn piece_end(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(PIECE_BYTES);
    let begin = text.floor_char_boundary(PIECE_BYTES / 2);
    text[begin..end].rfind('\n').map_or(end, |line_end| begin + line_end + 1)
}

/// A file of text that is open.
pub struct TextInput {
    /// Where it is. A source that reads here and there in a file opens it by this path.
    pub path: PathBuf,
    /// Its bytes from the beginning; those of a `.gz` or `.zst` file are unpacked on the way.
    pub reader: Box<dyn BufRead + Send>,
}

impl TextInput {
    /// Opens a file as it is.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), reader: Box::new(BufReader::with_capacity(1 << 16, file)) })
    }
}

impl Debug for TextInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextInput").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reads the documents of one kind of file.
pub trait TextSource: Debug + Send + Sync {
    /// The file extensions that this source reads, without the dot and without `gz` or `zst`. Asked for once.
    fn extensions(&self) -> Vec<String>;

    /// Gives the documents of a file one by one, without reading more of it than that takes.
    ///
    /// # Errors
    /// When the file cannot be read; a later item is an error when the file cannot be read on or is not what its kind should be.
    /// Errors name the file, and the place in it.
    fn documents(&self, input: TextInput) -> Result<Documents>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(usize, bool)> {
        Piece::cut(Content::Text(text.to_owned())).map(|piece| (piece.bytes(), piece.last)).collect()
    }

    #[test]
    fn long_documents_come_in_pieces_that_end_with_lines() {
        assert_eq!(cut("short"), [(5, true)]);
        assert!(cut("").is_empty());
        assert_eq!(Piece::cut(Content::Skipped("odd".to_owned())).count(), 1);
        let line = "ä".repeat(500) + "\n";
        let lines = cut(&line.repeat(5000));
        assert_eq!(lines, [(4_194_190, false), (5005 * 1000 - 4_194_190, true)]);
        assert_eq!(4_194_190 % line.len(), 0);
    }

    #[test]
    fn a_document_without_lines_is_cut_between_characters() {
        let text = format!("a{}", "€".repeat(3_000_000));
        let pieces: Vec<Piece> = Piece::cut(Content::Text(text.clone())).collect();
        let joined: String = pieces.iter().map(|piece| if let Content::Text(text) = &piece.content { text.as_str() } else { "" }).collect();
        assert!(joined == text && pieces.len() == 3 && pieces.iter().all(|piece| piece.bytes() <= PIECE_BYTES));
    }

    #[test]
    fn tokens_are_cut_by_their_bytes() {
        let pieces: Vec<Piece> = Piece::cut(Content::Tokens(vec![7; (1 << 20) + 1])).collect();
        assert_eq!(pieces.iter().map(|piece| (piece.bytes(), piece.last)).collect::<Vec<_>>(), [(PIECE_BYTES, false), (4, true)]);
    }
}
