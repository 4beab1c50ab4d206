//! `txt`: plain text, one document a file or documents between separators.

use std::fs;
use std::path::Path;

use circuitlab_core::{Construct, Documents, Error, Result, TextSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(text_source "txt" => TxtConfig, "plain UTF-8 text (.txt), whole or cut at a separator");

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

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
        if self.separator.as_deref() == Some("") {
            return Err(Error::config("text-source `txt`, key `separator`", "it is empty; leave it out for one document a file"));
        }
        Ok(Txt { separator: self.separator.clone() })
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

    fn documents(&self, path: &Path) -> Result<Documents> {
        let mut bytes = fs::read(path).map_err(Error::io("read", path))?;
        let mut skipped = 0;
        if bytes.starts_with(BYTE_ORDER_MARK) {
            skipped = BYTE_ORDER_MARK.len();
            bytes.drain(..skipped);
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let place = error.utf8_error().valid_up_to() + skipped;
            Error::format(path, format!("it is not UTF-8 at byte {place}; convert it first, for instance with `iconv -t utf-8`"))
        })?;
        let Some(separator) = self.separator.clone() else {
            return Ok(Box::new((!text.is_empty()).then_some(text).into_iter().map(Ok)));
        };
        let mut at = Some(0);
        let cut = std::iter::from_fn(move || {
            let begin = at?;
            let end = text[begin..].find(&separator).map(|length| begin + length);
            at = end.map(|end| end + separator.len());
            Some(text[begin..end.unwrap_or(text.len())].to_owned())
        });
        Ok(Box::new(cut.filter(|document| !document.is_empty()).map(Ok)))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "test files need no atomic writer")]
mod tests {
    use super::*;

    fn documents(bytes: &[u8], separator: Option<&str>) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.txt");
        fs::write(&path, bytes).expect("writes");
        TxtConfig { separator: separator.map(str::to_owned) }.construct()?.documents(&path)?.collect()
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
    }

    #[test]
    fn an_empty_separator_is_refused() {
        assert!(documents(b"a", Some("")).expect_err("empty").to_string().starts_with("text-source `txt`, key `separator`"));
    }
}
