//! Names of repositories.

use std::fmt::{self, Display, Formatter};

use crate::{Error, Result};

/// What every name of a repository begins with.
const PREFIX: &str = "hf:";

/// The branch that is meant where none is named.
const DEFAULT_REVISION: &str = "main";

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubKind {
    /// A language model.
    Model,
    /// A data set.
    Dataset,
}

/// A repository at a revision: `hf:ORG/NAME`, or `hf:ORG/NAME@REVISION` with a branch, a tag or a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSpec {
    kind: HubKind,
    name: String,
    revision: String,
}

impl HubSpec {
    /// Whether a text is meant as a repository, rightly written or not.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Reads `hf:ORG/NAME[@REVISION]`. A few old repositories have no `ORG/`.
    ///
    /// # Errors
    /// Another form, and characters that the hub's names do not have.
    pub fn parse(kind: HubKind, text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::Invalid(format!("`{}`: {why}; expected hf:ORG/NAME or hf:ORG/NAME@REVISION", text.escape_default()));
        let body = text.strip_prefix(PREFIX).ok_or_else(|| wrong("a repository begins with `hf:`"))?;
        let (name, revision) = body.split_once('@').unwrap_or((body, DEFAULT_REVISION));
        if name.split('/').count() > 2 || !name.split('/').all(is_name) {
            return Err(wrong("this is no name of a repository"));
        }
        if !is_revision(revision) {
            return Err(wrong("this is no name of a revision"));
        }
        Ok(Self { kind, name: name.to_owned(), revision: revision.to_owned() })
    }

    /// What it holds.
    pub fn kind(&self) -> HubKind {
        self.kind
    }

    /// `ORG/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The commit, where the revision is one in full, so that nothing about it can change.
    pub(super) fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }
}

impl Display for HubSpec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.name)?;
        if self.revision == DEFAULT_REVISION { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// A full commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a hub calls a commit or a content, where it may become the name of a file or folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+');
    (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// One half of a name, by the hub's own rules: `--` stands for the slash in the names of folders.
fn is_name(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let ends = |edge: char| part.starts_with(edge) || part.ends_with(edge);
    (1..=96).contains(&part.len()) && part.bytes().all(plain) && !ends('-') && !ends('.') && !part.contains("--") && !part.contains("..")
}

/// A branch, tag or commit: it becomes part of a path on disk and of an address.
fn is_revision(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'=');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains("..") && part.bytes().all(plain);
    text.len() <= 200 && text.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(text: &str) -> Result<HubSpec> {
        HubSpec::parse(HubKind::Model, text)
    }

    #[test]
    fn names_and_revisions_are_taken_apart() {
        let of = |text: &str| model(text).map(|spec| (spec.name().to_owned(), spec.revision().to_owned())).expect(text);
        assert_eq!(of("hf:org/tiny"), ("org/tiny".into(), "main".into()));
        assert_eq!(of("hf:EleutherAI/pythia-70m@step1000"), ("EleutherAI/pythia-70m".into(), "step1000".into()));
        assert_eq!(of("hf:org/tiny_1.5@refs/pr/3"), ("org/tiny_1.5".into(), "refs/pr/3".into()));
        assert_eq!(of("hf:gpt2"), ("gpt2".into(), "main".into()));
        assert_eq!(model("hf:org/tiny@main").expect("right").to_string(), "hf:org/tiny");
        assert!(model("hf:o/n@0123456789abcdef0123456789abcdef01234567").expect("right").commit().is_some());
        assert!(model("hf:o/n@v1").expect("right").commit().is_none());
    }

    #[test]
    fn wrong_names_are_told() {
        for text in ["org/tiny", "hf:", "hf:/", "hf:a/", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a b", "hf:a--b/c", "hf:-a/b", "hf:a/b."] {
            let error = model(text).expect_err(text).to_string();
            assert!(error.contains(text) && error.contains("expected hf:ORG/NAME"), "{error}");
        }
        for text in ["hf:a/b@", "hf:a/b@/x", "hf:a/b@x/../y", "hf:a/b@x y", "hf:a/b@.git", "hf:a/b@x@y", "hf:a/b@x?y"] {
            assert!(model(text).expect_err(text).to_string().contains("no name of a revision"), "{text}");
        }
        assert!(!model("hf:a\u{1b}[31m").expect_err("control").to_string().contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_back_the_same(text in "(hf:)?[\\PC@/.a-zA-Z0-9-]{0,40}") {
            if let Ok(spec) = model(&text) {
                prop_assert_eq!(&model(&spec.to_string()).expect("its own form"), &spec);
                prop_assert!(!spec.name().contains("..") && !spec.revision().contains(".."));
            }
        }

        #[test]
        fn right_names_are_taken(org in "[a-z][a-z0-9]{0,8}", name in "[A-Za-z0-9]{1,9}(_[A-Za-z0-9.]{0,3}[a-z])?", at in "[a-z0-9+]{1,9}(/[a-z0-9]{1,4}){0,2}") {
            prop_assume!(!name.contains(".."));
            let spec = model(&format!("hf:{org}/{name}@{at}")).expect("right");
            prop_assert_eq!(spec.name(), format!("{org}/{name}"));
            prop_assert_eq!(spec.revision(), at);
        }
    }
}
