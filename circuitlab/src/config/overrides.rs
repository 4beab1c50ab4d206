//! `--set a.b=c`.

use serde_json::{Map, Value};

use super::merge::merge;
use super::toml_text::{one_line, to_json};
use crate::{Error, Result};

/// No config is nested deeper; a longer path is a slip.
const DEEPEST: usize = 16;

/// One table of all overrides, in order. A value is TOML (`3`, `true`, `[1, 2]`, `"text"`); a bare word is text.
///
/// # Errors
/// [`Error::Invalid`] for one that is no `key=value`, with a bad key or with a broken list, table or quoted text.
pub fn overrides(sets: &[String]) -> Result<Value> {
    let mut all = Value::Object(Map::new());
    for set in sets {
        let one = parse(set).map_err(|message| Error::Invalid(format!("--set {}: {message}", quoted(set))))?;
        merge(&mut all, one);
    }
    Ok(all)
}

/// What an error about merged overrides calls them: the only one, or all.
pub(super) fn overrides_name(sets: &[String]) -> String {
    match sets {
        [only] if only.len() <= 60 && !only.contains(char::is_control) => format!("--set {only}"),
        _ => "--set".to_owned(),
    }
}

fn parse(set: &str) -> Result<Value, String> {
    let (path, text) = set.split_once('=').ok_or("expected `key=value`, such as `sparsity.lambda=4`")?;
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.len() > DEEPEST {
        return Err(format!("the key has {} parts; at most {DEEPEST} are allowed", keys.len()));
    }
    if let Some(bad) = keys.iter().find(|key| key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))) {
        return Err(format!("bad key part {}; expected letters, digits, `_` and `-`, separated by dots", quoted(bad)));
    }
    let value = value(text.trim())?;
    Ok(keys.iter().rev().fold(value, |value, key| Value::Object(Map::from_iter([((*key).to_owned(), value)]))))
}

fn value(text: &str) -> Result<Value, String> {
    match text.parse::<toml::Value>() {
        Ok(value) => to_json(value),
        Err(_) if text.is_empty() => Err("the value is missing; an empty text is `\"\"`".to_owned()),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(one_line(error.message())),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

/// The user's words in backticks, on one line and not endless.
fn quoted(text: &str) -> String {
    let short: String =
        text.chars().take(80).flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect();
    format!("`{short}{}`", if text.chars().count() > 80 { "..." } else { "" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(set: &str) -> Result<Value, String> {
        overrides(&[set.to_owned()]).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_toml_or_bare_words() {
        for (set, expected) in [
            ("a=3", json!({"a": 3})),
            ("a.b-c.d_1 = 1e-3", json!({"a": {"b-c": {"d_1": 1e-3}}})),
            ("a=[1, 'x']", json!({"a": [1, "x"]})),
            ("a={ b = true }", json!({"a": {"b": true}})),
            ("a=int8+zstd", json!({"a": "int8+zstd"})),
            ("a=/data/my model", json!({"a": "/data/my model"})),
            ("a=x=y", json!({"a": "x=y"})),
            ("a=\"\"", json!({"a": ""})),
            ("a=1979-05-27", json!({"a": "1979-05-27"})),
            ("a=1\nb=2", json!({"a": "1\nb=2"})),
        ] {
            assert_eq!(one(set).expect(set), expected, "{set}");
        }
    }

    #[test]
    fn malformed_overrides_are_refused() {
        assert_eq!(one("lambda").expect_err("no value"), "--set `lambda`: expected `key=value`, such as `sparsity.lambda=4`");
        assert_eq!(one("a=").expect_err("no value"), "--set `a=`: the value is missing; an empty text is `\"\"`");
        for set in
            ["", "=1", "a..b=1", ".a=1", "a b=1", "a=[1, 2", "a=\"x", "a={", "a=nan", "a=[inf]", &format!("{}a=1", "a.".repeat(1 << 16))]
        {
            let error = one(set).expect_err(set);
            assert!(error.starts_with("--set `") && !error.contains('\n') && error.len() < 400, "{error}");
        }
        assert!(one(&format!("a={}", "[".repeat(1 << 16))).is_err(), "nested too deep");
    }
}
