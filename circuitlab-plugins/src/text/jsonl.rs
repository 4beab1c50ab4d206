//! `jsonl`: files with one JSON object a line, each with a document in one of its fields.

use std::io::{BufRead, Read};

use circuitlab_core::{Construct, Content, Documents, Error, Piece, Result, TextInput, TextSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field;

register!(text_source "jsonl" => JsonlConfig, "one JSON object a line (.jsonl), the text or the ids of tokens in one of its fields");

/// A line is held in memory whole, so a file that has no line ends must not be read as one.
const LONGEST_LINE_BYTES: u64 = 64 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Config of the text source `jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonlConfig {
    /// The field that holds the text, or a list of token ids; `a.b` is the field `b` of the object in field `a`. Default: `text`.
    pub field: String,
    /// Whether lines that are no JSON, lack the field or hold something else in it are left out and counted. Default: no, they are
    /// errors.
    pub skip_bad_lines: bool,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        Self { field: "text".to_owned(), skip_bad_lines: false }
    }
}

impl Construct for JsonlConfig {
    type Output = Jsonl;

    fn construct(&self) -> Result<Jsonl> {
        field::check("jsonl", &self.field)?;
        Ok(Jsonl { config: self.clone() })
    }
}

/// JSON lines. Blank lines and empty documents are passed over.
#[derive(Debug, Clone)]
pub struct Jsonl {
    config: JsonlConfig,
}

impl TextSource for Jsonl {
    fn extensions(&self) -> Vec<String> {
        vec!["jsonl".to_owned(), "ndjson".to_owned()]
    }

    fn documents(&self, input: TextInput) -> Result<Documents> {
        let mut lines = Lines { input, number: 0, config: self.config.clone(), over: false };
        let documents = std::iter::from_fn(move || lines.document());
        Ok(Box::new(documents.flat_map(|document| {
            let (pieces, error) = match document {
                Ok(document) => (Some(Piece::cut(document)), None),
                Err(error) => (None, Some(Err(error))),
            };
            pieces.into_iter().flatten().map(Ok).chain(error)
        })))
    }
}

/// A file that is being read.
struct Lines {
    input: TextInput,
    number: u64,
    config: JsonlConfig,
    over: bool,
}

/// Why a line is no document.
enum Fault {
    /// The file cannot be read on.
    File(Error),
    /// It is the line's own.
    Line(String),
}

impl Lines {
    /// What the next line holds; nothing at the end of the file, or after an error.
    fn document(&mut self) -> Option<Result<Content>> {
        if self.over {
            return None;
        }
        let fault = match self.line() {
            Ok(None) => return None,
            // An empty document has no pieces.
            Ok(Some(line)) if line.trim_ascii().is_empty() => return Some(Ok(Content::Text(String::new()))),
            Ok(Some(line)) => match content(&line, &self.config.field) {
                Ok(content) => return Some(Ok(content)),
                Err(what) => Fault::Line(what),
            },
            Err(fault) => fault,
        };
        match fault {
            Fault::Line(what) if self.config.skip_bad_lines => Some(Ok(Content::Skipped(format!("line {} {what}", self.number)))),
            Fault::Line(what) => {
                self.over = true;
                let message = format!("line {} {what}; `skip_bad_lines` leaves such lines out", self.number);
                Some(Err(Error::format(&self.input.path, message)))
            }
            Fault::File(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        let mut line = Vec::new();
        self.read_line(&mut line, LONGEST_LINE_BYTES + 1)?;
        self.number += 1;
        if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.len() as u64 <= LONGEST_LINE_BYTES {
            return Ok((!line.is_empty()).then_some(line));
        }
        while !line.is_empty() && !line.ends_with(b"\n") {
            line.clear();
            self.read_line(&mut line, 1 << 20)?;
        }
        Err(Fault::Line(format!("is longer than {LONGEST_LINE_BYTES} bytes; expected one JSON object a line")))
    }

    fn read_line(&mut self, line: &mut Vec<u8>, most_bytes: u64) -> Result<(), Fault> {
        let mut limited = self.input.reader.by_ref().take(most_bytes);
        let read = limited.read_until(b'\n', line);
        read.map(drop).map_err(|error| Fault::File(Error::io("read", &self.input.path)(error)))
    }
}

/// The document of a line, or what is wrong with the line.
fn content(line: &[u8], field: &str) -> Result<Content, String> {
    let mut value: Value = serde_json::from_slice(line).map_err(|error| {
        let what = error.to_string().replace('\n', " ");
        let what = what.split(" at line ").next().unwrap_or_default();
        format!("is no JSON: {what}, column {}; expected one object a line", error.column())
    })?;
    for name in field.split('.') {
        let Value::Object(mut fields) = value else {
            return Err(format!("holds {} where an object with the field `{name}` was expected", kind(&value)));
        };
        value = fields.remove(name).ok_or_else(|| {
            let known: Vec<String> = fields.keys().take(20).map(|key| key.escape_debug().to_string()).collect();
            let of = if name == field { String::new() } else { format!(" of `{field}`") };
            format!("has no field `{name}`{of}; there are: {}", known.join(", "))
        })?;
    }
    match value {
        Value::String(text) => Ok(Content::Text(text)),
        Value::Array(ids) => ids
            .iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .map(Content::Tokens)
            .ok_or_else(|| format!("holds a list in the field `{field}` that is not of token ids; expected whole numbers from 0")),
        other => Err(format!("holds {} in the field `{field}`; expected text or a list of token ids", kind(&other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn read(config: &JsonlConfig, bytes: impl Into<Vec<u8>>) -> Result<Vec<Content>> {
        let input = TextInput { path: "a.jsonl".into(), reader: Box::new(Cursor::new(bytes.into())) };
        config.construct()?.documents(input)?.map(|piece| piece.map(|piece| piece.content)).collect()
    }

    fn field(field: &str) -> JsonlConfig {
        JsonlConfig { field: field.to_owned(), ..JsonlConfig::default() }
    }

    fn refusal(config: &JsonlConfig, text: &str) -> String {
        read(config, text).expect_err("wrong").to_string()
    }

    #[test]
    fn text_and_tokens_are_found_in_fields_of_fields() {
        assert_eq!(read(&field("a.b"), r#"{"a": {"b": "deep"}, "b": 1}"#).expect("good"), [Content::from("deep")]);
        let lines = "{\"tokens\": [1, 4294967295]}\n{\"tokens\": []}\n\n{\"tokens\": \"text\"}";
        assert_eq!(read(&field("tokens"), lines).expect("good"), [Content::Tokens(vec![1, u32::MAX]), Content::from("text")]);
        assert_eq!(read(&field("text"), "\u{feff}{\"text\": \"a\"}").expect("good"), [Content::from("a")]);
    }

    #[test]
    fn mistakes_are_named_with_file_and_line() {
        let error = refusal(&field("text"), "{\"text\": \"a\"}\n\n{\"body\": \"b\", \"id\": 1}");
        assert_eq!(error, "`a.jsonl`: line 3 has no field `text`; there are: body, id; `skip_bad_lines` leaves such lines out");
        let error = refusal(&field("a.b"), r#"{"a": "flat"}"#);
        assert!(error.contains("line 1 holds text where an object with the field `b` was expected"), "{error}");
        assert!(refusal(&field("text"), r#"{"text": null}"#).contains("line 1 holds null in the field `text`; expected text or a list"));
        assert!(refusal(&field("text"), r#"{"text": [1, -2]}"#).contains("not of token ids"));
        let error = refusal(&field("text"), r#"{"text": "a"#);
        assert!(error.contains("line 1 is no JSON: EOF while parsing a string, column 11; expected one object a line"), "{error}");
        assert!(read(&field("text"), b"{\"text\": \"\xff\"}".to_vec()).expect_err("not UTF-8").to_string().contains("line 1 is no JSON"));
        assert!(refusal(&field("a..b"), "").starts_with("text-source `jsonl`, key `field`: expected a name"));
    }

    #[test]
    fn bad_lines_are_left_out_and_told_where_that_is_asked_for() {
        let config = JsonlConfig { skip_bad_lines: true, ..JsonlConfig::default() };
        let mut bytes = b"{\"text\": \"a\"}\nnonsense\n{\"text\": 3}\n".to_vec();
        bytes.resize(bytes.len() + LONGEST_LINE_BYTES as usize + (3 << 20), b' ');
        bytes.extend(b"\n{\"text\": \"b\"}");
        let found = read(&config, bytes).expect("the rest is good");
        assert_eq!((&found[0], &found[4]), (&Content::from("a"), &Content::from("b")));
        let why: Vec<&str> =
            found[1..4].iter().map(|skipped| if let Content::Skipped(why) = skipped { why.as_str() } else { "" }).collect();
        assert!(why[0].starts_with("line 2 is no JSON") && why[1].starts_with("line 3 holds a number"), "{why:?}");
        assert!(why[2].starts_with("line 4 is longer than 67108864 bytes"), "{why:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_documents_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,30}") {
            let _ = read(&field("text"), bytes);
            let line = serde_json::json!({"text": text}).to_string();
            let expected: Vec<Content> = if text.is_empty() { Vec::new() } else { vec![Content::Text(text)] };
            prop_assert_eq!(read(&field("text"), line).expect("good"), expected);
        }
    }
}
