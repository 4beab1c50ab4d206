//! `json-lines`: files with one JSON object a line (`.jsonl`), each with a document in one of its fields.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use circuitlab_core::{Construct, Documents, Error, Result, TextSource, register};
use serde_json::Value;

register!(text_source "json-lines" => JsonLinesConfig, "one JSON object a line (.jsonl), the text in one of its fields");
circuitlab_core::export_plugin!();

/// A line is held in memory whole, so a file that has no line ends must not be read as one.
pub const LONGEST_LINE_BYTES: usize = 64 << 20;

/// Settings of `json-lines`.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonLinesConfig {
    /// The field that holds the text; `a.b` is the field `b` of the object in field `a`. Default: `text`.
    pub field: String,
}

impl Default for JsonLinesConfig {
    fn default() -> Self {
        Self { field: "text".to_owned() }
    }
}

impl Construct for JsonLinesConfig {
    type Output = JsonLines;

    fn construct(&self) -> Result<JsonLines> {
        if self.field.split('.').any(str::is_empty) {
            let message = format!("expected a name, or names with dots between, such as `meta.text`, got `{}`", self.field);
            return Err(Error::config("text-source `json-lines`, key `field`", message));
        }
        Ok(JsonLines { field: self.field.clone() })
    }
}

/// The text source. Blank lines and empty documents are skipped.
#[derive(Debug)]
pub struct JsonLines {
    field: String,
}

impl TextSource for JsonLines {
    fn extensions(&self) -> Vec<String> {
        vec!["jsonl".to_owned()]
    }

    fn documents(&self, path: &Path) -> Result<Documents> {
        let reader = BufReader::new(File::open(path).map_err(Error::io("read", path))?);
        let mut lines = Lines { reader, path: path.to_owned(), number: 0, field: self.field.clone(), failed: false };
        Ok(Box::new(std::iter::from_fn(move || lines.document())))
    }
}

/// A file that is being read.
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    number: u64,
    field: String,
    failed: bool,
}

impl Lines {
    /// The next document that is not empty; nothing at the end of the file, or after an error.
    fn document(&mut self) -> Option<Result<String>> {
        while !self.failed {
            let line = self.line().transpose()?;
            let text = line.and_then(|line| if line.trim_ascii().is_empty() { Ok(String::new()) } else { self.text(&line) });
            self.failed = text.is_err();
            if !text.as_ref().is_ok_and(String::is_empty) {
                return Some(text);
            }
        }
        None
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut limited = self.reader.by_ref().take(LONGEST_LINE_BYTES as u64 + 1);
        limited.read_until(b'\n', &mut line).map_err(Error::io("read", &self.path))?;
        self.number += 1;
        if line.len() > LONGEST_LINE_BYTES {
            return Err(self.wrong(&format!("is longer than {LONGEST_LINE_BYTES} bytes; expected one JSON object a line")));
        }
        Ok((!line.is_empty()).then_some(line))
    }

    fn text(&self, line: &[u8]) -> Result<String> {
        let mut value = serde_json::from_slice(line).map_err(|error| {
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            self.wrong(&format!("is no JSON: {what}, column {}; expected one object a line", error.column()))
        })?;
        for name in self.field.split('.') {
            let Value::Object(mut fields) = value else {
                return Err(self.wrong(&format!("holds {} where an object with the field `{name}` was expected", kind(&value))));
            };
            value = fields.remove(name).ok_or_else(|| {
                let known: Vec<&str> = fields.keys().take(20).map(String::as_str).collect();
                self.wrong(&format!("has no field `{name}` of `{}`; there are: {}", self.field, known.join(", ")))
            })?;
        }
        match value {
            Value::String(text) => Ok(text),
            other => Err(self.wrong(&format!("holds {} in the field `{}`; expected text", kind(&other), self.field))),
        }
    }

    fn wrong(&self, what: &str) -> Error {
        Error::format(&self.path, format!("line {} {}", self.number, what.replace('\n', " ")))
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
