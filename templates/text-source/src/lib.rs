//! `md-sections`: Markdown files (`.md`), cut into documents at headings.

use std::io::{BufRead, Read};

use circuitlab_core::text::PIECE_BYTES;
use circuitlab_core::{Construct, Content, Documents, Error, Piece, Result, TextInput, TextSource, register};

register!(text_source "md-sections" => MdSectionsConfig, "Markdown files (.md), cut into documents at headings");
circuitlab_core::export_plugin!();

/// A line is held in memory whole, so a file that has no line ends must not be read as one.
pub const LONGEST_LINE_BYTES: usize = 1 << 20;

/// Settings of `md-sections`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MdSectionsConfig {
    /// Headings of how many `#`, or fewer, begin a document; 0: a file is one document. Default: 1.
    pub level: usize,
}

impl Default for MdSectionsConfig {
    fn default() -> Self {
        Self { level: 1 }
    }
}

impl Construct for MdSectionsConfig {
    type Output = MdSections;

    fn construct(&self) -> Result<MdSections> {
        if self.level > 6 {
            let message = format!("expected 0 to 6, got {}: headings have at most six `#`", self.level);
            return Err(Error::config("text-source `md-sections`, key `level`", message));
        }
        Ok(MdSections { level: self.level })
    }
}

/// The text source. Documents of nothing but white space are skipped.
#[derive(Debug)]
pub struct MdSections {
    level: usize,
}

impl TextSource for MdSections {
    fn extensions(&self) -> Vec<String> {
        vec!["md".to_owned(), "markdown".to_owned()]
    }

    fn documents(&self, input: TextInput) -> Result<Documents> {
        let mut sections = Sections { input, level: self.level, lines: 0, fence: None, open: Some(String::new()), in_document: false };
        Ok(Box::new(std::iter::from_fn(move || {
            let piece = sections.next().transpose()?;
            // After an error there are no more documents.
            sections.open = sections.open.take().filter(|_| piece.is_ok());
            Some(piece)
        })))
    }
}

/// A file that is being read.
struct Sections {
    input: TextInput,
    level: usize,
    lines: u64,
    /// The fence of the code block that is open: headings inside are none.
    fence: Option<&'static str>,
    /// What is read of the next piece; nothing at the end of the file.
    open: Option<String>,
    /// Whether a piece of the current document was given.
    in_document: bool,
}

impl Sections {
    /// The next section that holds anything, or a piece of it where it is long.
    fn next(&mut self) -> Result<Option<Piece>> {
        while let Some(mut text) = self.open.take() {
            let mut last = true;
            while let Some(line) = self.line()? {
                if self.begins_section(&line) {
                    self.open = Some(line);
                    break;
                }
                text.push_str(&line);
                if text.len() > PIECE_BYTES - LONGEST_LINE_BYTES {
                    // What is tokenised at once stays small, and so does what is in memory.
                    self.open = Some(String::new());
                    last = false;
                    break;
                }
            }
            let empty = text.trim().is_empty() && last && !self.in_document;
            self.in_document = !last;
            if !empty {
                return Ok(Some(Piece { content: Content::Text(text), last }));
            }
        }
        Ok(None)
    }

    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let mut limited = self.input.reader.by_ref().take(LONGEST_LINE_BYTES as u64 + 1);
        limited.read_until(b'\n', &mut line).map_err(Error::io("read", &self.input.path))?;
        self.lines += 1;
        if line.len() > LONGEST_LINE_BYTES {
            return Err(self.wrong(&format!("is longer than {LONGEST_LINE_BYTES} bytes; expected lines of text")));
        }
        let line = String::from_utf8(line).map_err(|_| self.wrong("is not UTF-8"))?;
        Ok((!line.is_empty()).then_some(line))
    }

    fn begins_section(&mut self, line: &str) -> bool {
        if let Some(fence) = ["```", "~~~"].into_iter().find(|fence| line.trim_start().starts_with(fence)) {
            match self.fence {
                None => self.fence = Some(fence),
                Some(open) if open == fence => self.fence = None,
                Some(_) => {}
            }
        }
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        self.fence.is_none() && (1..=self.level).contains(&level) && line[level..].starts_with([' ', '\t', '\n', '\r'])
    }

    fn wrong(&self, what: &str) -> Error {
        Error::format(&self.input.path, format!("line {} {what}", self.lines))
    }
}
