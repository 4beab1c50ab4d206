//! TOML text to JSON values and back.

use std::fs;
use std::path::Path;

use circuitlab_core::Error as CoreError;
use serde::Serialize;
use serde_json::{Map, Number, Value};

use crate::{Error, Result};

/// Reads a TOML file.
///
/// # Errors
/// When it cannot be read, or is no TOML: with line and column.
pub fn load(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(CoreError::io("read", path))?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| CoreError::format(path, format!("expected UTF-8 text, found another byte at {}", error.valid_up_to())))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let (line, column) = place(text, error.span().map_or(0, |span| span.start));
        CoreError::format(path, format!("line {line}, column {column}: {}", one_line(error.message())))
    })?;
    Ok(to_json(toml::Value::Table(table)).map_err(|message| CoreError::format(path, message))?)
}

/// Writes a config as TOML: simple keys first, then tables; fields that are `None` are left out.
///
/// # Errors
/// [`Error::Invalid`] when it is no table, or holds an integer beyond 63 bits or a `None` in a list, which TOML cannot
/// express.
pub fn to_toml(config: &impl Serialize) -> Result<String> {
    let fail = |message: String| Error::Invalid(format!("cannot write the config as TOML: {message}"));
    let value = serde_json::to_value(config).map_err(|error| fail(error.to_string()))?;
    let Value::Object(table) = value else { return Err(fail("expected a table".to_owned())) };
    let text = toml::to_string_pretty(&tables_last(table)).map_err(|error| fail(one_line(&error.to_string())))?;
    // The writer takes integers that no reader does; a run that cannot be resumed from its own file must not start.
    text.parse::<toml::Table>().map_err(|error| fail(one_line(error.message())))?;
    Ok(text)
}

/// TOML's values are JSON's, but for dates, which become text, and for infinity and NaN, which no setting may be.
pub(super) fn to_json(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => {
            let finite = Number::from_f64(number).ok_or_else(|| format!("`{number}` cannot be a setting; expected a finite number"));
            Value::Number(finite?)
        }
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(items) => items.into_iter().map(to_json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| Ok::<_, String>((key, to_json(value)?)));
            Value::Object(entries.collect::<Result<_, _>>()?)
        }
    })
}

/// Drops nulls and moves tables to the end: after a table's head, TOML has no way back to the keys above it.
fn tables_last(table: Map<String, Value>) -> Map<String, Value> {
    let (tables, simple): (Vec<_>, Vec<_>) =
        table.into_iter().filter(|(_, value)| !value.is_null()).partition(|(_, value)| value.is_object());
    let ordered = simple.into_iter().chain(tables);
    ordered.map(|(key, value)| (key, if let Value::Object(table) = value { Value::Object(tables_last(table)) } else { value })).collect()
}

/// Line and column, from 1, of a byte.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// A library's message without line breaks.
pub(super) fn one_line(message: &str) -> String {
    message.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use circuitlab_core::files::write_atomic;
    use serde_json::json;

    use super::*;

    fn load_text(text: &[u8]) -> Result<Value, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.toml");
        write_atomic(&path, |out| out.write_all(text)).expect("writes");
        load(&path).map_err(|error| error.to_string().replace(&path.display().to_string(), "run.toml"))
    }

    #[test]
    fn a_broken_file_is_answered_with_line_and_column() {
        let error = load_text("seed = 1\nname = ä\n".as_bytes()).expect_err("no value");
        assert!(error.starts_with("`run.toml`: line 2, column 8: ") && !error.contains('\n'), "{error}");
        let error = load_text(b"a = 1\na = 2\n").expect_err("twice");
        assert!(error.starts_with("`run.toml`: line 2, column 1: duplicate key"), "{error}");
        assert_eq!(load_text(b"a = \"\xff\"").expect_err("bytes"), "`run.toml`: expected UTF-8 text, found another byte at 5");
        assert_eq!(load_text(b"a = inf").expect_err("infinite"), "`run.toml`: `inf` cannot be a setting; expected a finite number");
        assert!(load(Path::new("nowhere.toml")).expect_err("no file").to_string().starts_with("cannot read `nowhere.toml`"));
    }

    #[test]
    fn tables_come_last_and_nulls_not_at_all() {
        let config = json!({"a": {"b": {"c": 1}, "d": 2, "e": null}, "f": [1, 2], "g": null, "h": "x"});
        let text = to_toml(&config).expect("a table");
        assert_eq!(load_text(text.as_bytes()).expect("valid"), json!({"f": [1, 2], "h": "x", "a": {"d": 2, "b": {"c": 1}}}));
        assert!(text.find("h = ").expect("h") < text.find("[a]").expect("a"), "{text}");
    }

    #[test]
    fn what_toml_cannot_express_is_refused() {
        for config in [json!({"seed": u64::MAX}), json!([1]), json!({"list": [null]})] {
            let error = to_toml(&config).expect_err("not TOML").to_string();
            assert!(error.starts_with("cannot write the config as TOML: ") && !error.contains('\n'), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read_or_refused_in_one_line(bytes: Vec<u8>, text: String) {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                if let Err(error) = load_text(bytes) {
                    proptest::prop_assert!(!error.contains('\n'), "{}", error);
                }
            }
        }
    }
}
