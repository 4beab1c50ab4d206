//! The crates of `templates/`, which are part of the program, and how one becomes a crate of the user's own.

use circuitlab_core::Kind;

/// A template: a plugin crate of one kind.
pub(super) struct Template {
    pub(super) kind: Kind,
    /// Its package.
    package: &'static str,
    /// The name that it registers.
    name: &'static str,
    /// Its files: place and content.
    files: &'static [(&'static str, &'static str)],
}

macro_rules! template {
    ($kind:ident, $folder:literal, $package:literal, $name:literal, [$($file:literal),*]) => {
        Template {
            kind: Kind::$kind,
            package: $package,
            name: $name,
            files: &[$(($file, include_str!(concat!("../../../../templates/", $folder, "/", $file)))),*],
        }
    };
}

pub(super) const TEMPLATES: [Template; 6] = [
    template!(
        Codec,
        "codec",
        "circuitlab-codec-bfp8",
        "bfp8",
        ["Cargo.toml", "README.md", "build.rs", "src/lib.rs", "tests/conformance.rs"]
    ),
    template!(
        Activation,
        "activation",
        "circuitlab-activation-gated",
        "gated",
        ["Cargo.toml", "README.md", "build.rs", "src/lib.rs", "tests/conformance.rs"]
    ),
    template!(
        Model,
        "model",
        "circuitlab-model-starcoder2",
        "starcoder2",
        ["Cargo.toml", "README.md", "build.rs", "src/lib.rs", "tests/it/folder.rs", "tests/it/main.rs", "tests/it/reference.rs"]
    ),
    template!(
        Strategy,
        "strategy",
        "circuitlab-strategy-star",
        "star",
        ["Cargo.toml", "README.md", "build.rs", "src/lib.rs", "src/link.rs", "tests/conformance.rs"]
    ),
    template!(
        TextSource,
        "text-source",
        "circuitlab-text-source-md-sections",
        "md-sections",
        ["Cargo.toml", "README.md", "build.rs", "src/lib.rs", "tests/conformance.rs"]
    ),
    template!(
        MetricSink,
        "metric-sink",
        "circuitlab-metric-sink-tidy",
        "tidy",
        ["Cargo.toml", "README.md", "build.rs", "src/lib.rs", "tests/conformance.rs"]
    ),
];

/// Names that every file has from the standard library.
const PRELUDE: [&str; 24] = [
    "Ok", "Err", "Some", "None", "Option", "Result", "Vec", "Box", "String", "Default", "Drop", "Fn", "Iterator", "Send", "Sync", "Sized",
    "Copy", "Clone", "From", "Into", "Eq", "Ord", "Debug", "Self",
];

impl Template {
    /// The type that a crate of this name would define though it is there already, if one is.
    pub(super) fn clash(&self, name: &str) -> Option<String> {
        let named =
            |text: &str, wanted: &str| text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == wanted);
        let types = [camel_case(name), format!("{}Config", camel_case(name))];
        let taken = |wanted: &String| PRELUDE.contains(&wanted.as_str()) || self.files.iter().any(|(_, text)| named(text, wanted));
        types.into_iter().find(taken)
    }

    /// The files of a crate that is called `name` and depends on the crates of the clone at `source`.
    pub(super) fn instantiate(&self, name: &str, source: &str) -> Vec<(&'static str, String)> {
        let renamed = |text: &str| {
            // Before the name alone, which stands in both.
            let text = text.replace(self.package, name).replace(&self.package.replace('-', "_"), &name.replace('-', "_"));
            let text = text
                .replace(&format!("\"{}\"", self.name), &format!("\"{name}\""))
                .replace(&format!("`{}`", self.name), &format!("`{name}`"));
            let text = text.replace(&camel_case(self.name), &camel_case(name));
            text.split_inclusive('\n').map(|line| self.command(line, name)).collect::<String>()
        };
        let file = |(place, content): &(&'static str, &str)| {
            let content = renamed(content);
            let whole = if *place == "Cargo.toml" { manifest(&content, source) } else { content };
            (*place, whole)
        };
        self.files.iter().map(file).collect()
    }

    /// A command line of the README, where the name stands without quotes.
    fn command(&self, line: &str, name: &str) -> String {
        if !line.starts_with("$ ") {
            return line.to_owned();
        }
        let word = |word: &str| match word.trim_end().strip_prefix(self.name) {
            Some(rest) if rest.is_empty() || rest.starts_with('+') => word.replacen(self.name, name, 1),
            _ => word.to_owned(),
        };
        line.split(' ').map(word).collect::<Vec<_>>().join(" ")
    }
}

/// A template's manifest outside of the tree: paths lead into the clone, and no workspace around it takes the crate in.
fn manifest(text: &str, source: &str) -> String {
    let escaped = source.replace('\\', "\\\\").replace('"', "\\\"");
    let text = text.replace("path = \"../../", &format!("path = \"{escaped}/"));
    // The same profile as in the clone, so that dependencies are built once for both where they share a target folder.
    format!("{}\n\n[workspace]\n\n[profile.dev.package.\"*\"]\nopt-level = 2\ndebug = false\n", text.trim_end())
}

/// `my-codec` as the types are called, `MyCodec`.
fn camel_case(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn folder(template: &Template) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates").join(template.kind.name())
    }

    fn files(folder: &Path, below: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("a template").map(|entry| entry.expect("a template")) {
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            match entry.path() {
                path if path.is_dir() => files(&path, &format!("{name}/"), found),
                _ => assert!(found.insert(name)),
            }
        }
    }

    #[test]
    fn every_file_of_a_template_is_in_the_program() {
        for template in &TEMPLATES {
            let mut there = BTreeSet::new();
            files(&folder(template), "", &mut there);
            assert_eq!(template.files.iter().map(|(place, _)| (*place).to_owned()).collect::<BTreeSet<_>>(), there);
        }
    }

    #[test]
    fn names_that_would_clash_are_known() {
        for template in &TEMPLATES {
            for name in ["ok", "result", "construct"] {
                assert!(template.clash(name).is_some(), "{name}");
            }
            assert_eq!(template.clash("my-thing"), None);
        }
    }

    #[test]
    fn a_template_is_renamed_throughout() {
        for template in &TEMPLATES {
            let made = template.instantiate("my-thing2", "/a \"clone\"");
            let text = |place: &str| &made.iter().find(|(known, _)| *known == place).expect("is there").1;
            assert!(
                text("Cargo.toml").contains("name = \"my-thing2\"")
                    && text("Cargo.toml").contains(r#"path = "/a \"clone\"/circuitlab-core"#)
            );
            assert!(text("src/lib.rs").contains("\"my-thing2\" => MyThing2Config"), "{}", text("src/lib.rs"));
            for (place, content) in &made {
                for old in [template.package, &template.package.replace('-', "_"), &camel_case(template.name), "../../circuitlab"] {
                    assert!(!content.contains(old), "{place} still has `{old}`");
                }
            }
        }
    }
}
