//! `txt`: plain text, one document a file or documents between separators.

use std::io::{BufRead, Read};
use std::path::PathBuf;

use circuitlab_core::text::{PIECE_BYTES, piece_end};
use circuitlab_core::{Construct, Content, Documents, Error, Piece, Result, TextInput, TextSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(text_source "txt" => TxtConfig, "plain UTF-8 text (.txt), whole or cut at a separator");

const BYTE_ORDER_MARK: char = '\u{feff}';

/// What is read at once.
const BLOCK_BYTES: u64 = 1 << 20;

/// Separators must fit into what is in memory.
const LONGEST_SEPARATOR_BYTES: usize = 64 << 10;

/// Config of the text source `txt`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TxtConfig {
    /// What stands between documents, such as `<|endoftext|>`. Default: nothing, so that a file is one document.
    pub separator: Option<String>,
}

impl Construct for TxtConfig {
    type Output = Txt;

    fn construct(&self) -> Result<Txt> {
        let wrong = |message: &str| Err(Error::config("text-source `txt`, key `separator`", message));
        match self.separator.as_deref() {
            Some("") => wrong("it is empty; leave it out for one document a file"),
            Some(long) if long.len() > LONGEST_SEPARATOR_BYTES => wrong("it is longer than 65536 bytes; expected a few characters"),
            _ => Ok(Txt { separator: self.separator.clone() }),
        }
    }
}

/// Plain text.
#[derive(Debug, Clone)]
pub struct Txt {
    separator: Option<String>,
}

impl TextSource for Txt {
    fn extensions(&self) -> Vec<String> {
        vec!["txt".to_owned()]
    }

    fn documents(&self, input: TextInput) -> Result<Documents> {
        let TextInput { path, reader } = input;
        let mut file = Open {
            path,
            reader,
            separator: self.separator.clone(),
            text: String::new(),
            at: 0,
            odd_bytes: Vec::new(),
            read_bytes: 0,
            in_document: false,
            ended: false,
            over: false,
        };
        Ok(Box::new(std::iter::from_fn(move || file.next().transpose())))
    }
}

/// A file that is being read.
struct Open {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    separator: Option<String>,
    /// What was read and is text.
    text: String,
    /// How much of it was given.
    at: usize,
    /// The beginning of a character whose end is not read yet.
    odd_bytes: Vec<u8>,
    /// Bytes of the file before `odd_bytes`.
    read_bytes: usize,
    /// Whether a piece of the current document was given.
    in_document: bool,
    /// Whether the file has no more bytes.
    ended: bool,
    /// Whether there is nothing more to give, or an error was.
    over: bool,
}

impl Open {
    fn next(&mut self) -> Result<Option<Piece>> {
        while !self.over {
            let rest = &self.text[self.at..];
            let separator = self.separator.as_deref().unwrap_or_default();
            let found = if separator.is_empty() { None } else { rest.find(separator) };
            let end = found.unwrap_or(rest.len());
            // A separator may begin in the last bytes of what is read.
            if found.is_none() && !self.ended && rest.len() <= PIECE_BYTES + separator.len() {
                self.read_on().inspect_err(|_| self.over = true)?;
                continue;
            }
            let length = piece_end(&rest[..end]);
            let last = length == end && (found.is_some() || self.ended);
            let text = rest[..length].to_owned();
            self.at += length + if last { separator.len() } else { 0 };
            self.over = last && found.is_none();
            let empty = text.is_empty() && !self.in_document;
            self.in_document = !last;
            if !empty {
                return Ok(Some(Piece { content: Content::Text(text), last }));
            }
        }
        Ok(None)
    }

    /// Reads a block more.
    fn read_on(&mut self) -> Result<()> {
        self.text.drain(..self.at);
        self.at = 0;
        let mut bytes = std::mem::take(&mut self.odd_bytes);
        let got = self.reader.by_ref().take(BLOCK_BYTES).read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
        self.ended = got == 0;
        let valid = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) if error.error_len().is_none() && !self.ended => {
                self.odd_bytes = bytes.split_off(error.valid_up_to());
                std::str::from_utf8(&bytes).unwrap_or_default()
            }
            Err(error) => {
                let place = self.read_bytes + error.valid_up_to();
                let message = format!("it is not UTF-8 at byte {place}; convert it first, for instance with `iconv -t utf-8`");
                return Err(Error::format(&self.path, message));
            }
        };
        let marked = self.read_bytes == 0 && valid.starts_with(BYTE_ORDER_MARK);
        self.text.push_str(if marked { &valid[BYTE_ORDER_MARK.len_utf8()..] } else { valid });
        self.read_bytes += valid.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use proptest::prelude::*;

    use super::*;

    fn pieces(bytes: &[u8], separator: Option<&str>) -> Result<Vec<Piece>> {
        let input = TextInput { path: "a.txt".into(), reader: Box::new(BufReader::with_capacity(7, Cursor::new(bytes.to_vec()))) };
        TxtConfig { separator: separator.map(str::to_owned) }.construct()?.documents(input)?.collect()
    }

    fn documents(bytes: &[u8], separator: Option<&str>) -> Result<Vec<String>> {
        let mut documents = vec![String::new()];
        for piece in pieces(bytes, separator)? {
            let Content::Text(text) = piece.content else { panic!("no text") };
            documents.last_mut().expect("one").push_str(&text);
            if piece.last {
                documents.push(String::new());
            }
        }
        assert_eq!(documents.pop().as_deref(), Some(""), "the last document has no end");
        Ok(documents)
    }

    #[test]
    fn a_file_is_one_document_without_its_byte_order_mark() {
        assert_eq!(documents("\u{feff}Die Käfer\n\nzwei".as_bytes(), None).expect("text"), ["Die Käfer\n\nzwei"]);
        assert!(documents(b"", None).expect("text").is_empty());
    }

    #[test]
    fn separators_cut_and_empty_documents_are_skipped() {
        assert_eq!(documents(b"--one--two----three--", Some("--")).expect("text"), ["one", "two", "three"]);
        assert_eq!(documents(b"one", Some("--")).expect("text"), ["one"]);
    }

    #[test]
    fn what_is_not_utf_8_is_named_with_its_place() {
        let error = documents(b"\xef\xbb\xbfab\xffcd", None).expect_err("not UTF-8").to_string();
        assert!(error.contains("a.txt`: it is not UTF-8 at byte 5"), "{error}");
        let mut late = "ä".repeat(1 << 20).into_bytes();
        late.extend(b"x\xc3");
        let error = documents(&late, None).expect_err("cut in a character").to_string();
        assert!(error.contains("not UTF-8 at byte 2097153"), "{error}");
    }

    #[test]
    fn long_documents_come_in_pieces_and_separators_at_their_edges_are_seen() {
        let line = "0123456789 Käfer\n";
        let long = line.repeat(9 * PIECE_BYTES / 2 / line.len());
        let given = pieces(long.as_bytes(), None).expect("text");
        assert!(given.len() == 5 && given.iter().all(|piece| piece.bytes() <= PIECE_BYTES && piece.bytes() % line.len() == 0));
        for before in PIECE_BYTES - 3..PIECE_BYTES + 6 {
            let text = format!("{}<end>b", "a".repeat(before));
            let found = documents(text.as_bytes(), Some("<end>")).expect("text");
            assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [before, 1], "{before}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text in "[a-zä\n-]{0,200}") {
            let expected: Vec<&str> = text.split("--").filter(|document| !document.is_empty()).collect();
            prop_assert_eq!(documents(text.as_bytes(), Some("--")).expect("text"), expected);
        }
    }

    #[test]
    fn an_empty_separator_is_refused() {
        assert!(documents(b"a", Some("")).expect_err("empty").to_string().starts_with("text-source `txt`, key `separator`"));
    }
}
