//! The registry: a value, not a global, so that embedders and tests can make their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::registration::{Kind, Registration, Slot};
use crate::{Error, Result, Spec};

/// Where a plugin came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is linked into this program.
    Linked,
    /// It came with a library, loaded from this file.
    Loaded(PathBuf),
}

#[derive(Debug, Clone)]
struct Entry {
    plugin: Registration,
    origin: Origin,
}

impl Entry {
    /// Who brought it, for messages.
    fn whence(&self) -> String {
        let package = format!("{} {}", self.plugin.package(), self.plugin.version());
        match &self.origin {
            Origin::Linked => package,
            Origin::Loaded(file) => format!("{package} (`{}`)", file.display()),
        }
    }
}

/// Every plugin that this program knows, by kind and name.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    plugins: BTreeMap<(Kind, &'static str), Entry>,
}

impl Registry {
    /// All plugins that are linked into this program.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when two of one kind share a name.
    pub fn linked() -> Result<Self> {
        let mut registry = Self::default();
        for registration in inventory::iter::<Registration> {
            registry.add(*registration)?;
        }
        Ok(registry)
    }

    /// Adds one plugin that is linked into this program.
    ///
    /// # Errors
    /// [`Error::Duplicate`] when its kind has that name already; the registry is unchanged then.
    pub fn add(&mut self, plugin: Registration) -> Result<()> {
        self.add_all(&[plugin], &Origin::Linked)
    }

    /// Adds all plugins of one origin, or none.
    pub(super) fn add_all(&mut self, plugins: &[Registration], origin: &Origin) -> Result<()> {
        let mut whole = self.plugins.clone();
        for plugin in plugins {
            let key = (plugin.kind(), plugin.name());
            let second = Entry { plugin: *plugin, origin: origin.clone() };
            if let Some(first) = whole.get(&key) {
                let (first, second) = (first.whence(), second.whence());
                return Err(Error::Duplicate { kind: key.0.name(), name: key.1.to_owned(), first, second });
            }
            whole.insert(key, second);
        }
        self.plugins = whole;
        Ok(())
    }

    /// Whether a library was loaded into this registry before.
    #[cfg(feature = "loader")]
    pub(super) fn has_loaded(&self, file: &Path) -> bool {
        self.libraries().contains(&file)
    }

    /// The files of all libraries that were loaded, in the order of their names.
    pub fn libraries(&self) -> BTreeSet<&Path> {
        let files = self.plugins.values().filter_map(|entry| match &entry.origin {
            Origin::Linked => None,
            Origin::Loaded(file) => Some(file.as_path()),
        });
        files.collect()
    }

    /// The library that a plugin came with; none where it is linked in, or unknown.
    pub fn library_of(&self, kind: Kind, name: &str) -> Option<&Path> {
        let (_, origin) = self.origins().find(|(plugin, _)| plugin.kind() == kind && plugin.name() == name)?;
        match origin {
            Origin::Linked => None,
            Origin::Loaded(file) => Some(file),
        }
    }

    /// All plugins, by kind and name.
    pub fn list(&self) -> impl Iterator<Item = &Registration> {
        self.plugins.values().map(|entry| &entry.plugin)
    }

    /// All plugins and where each came from, by kind and name.
    pub fn origins(&self) -> impl Iterator<Item = (&Registration, &Origin)> {
        self.plugins.values().map(|entry| (&entry.plugin, &entry.origin))
    }

    /// The names of one kind.
    pub fn names(&self, kind: Kind) -> Vec<String> {
        self.plugins.keys().filter(|(of, _)| *of == kind).map(|(_, name)| (*name).to_owned()).collect()
    }

    /// Whether there is such a plugin.
    pub fn knows(&self, kind: Kind, name: &str) -> bool {
        self.find(kind, name).is_ok()
    }

    /// The same spec with the plugin's defaults filled in: what belongs into a manifest.
    ///
    /// # Errors
    /// An unknown name, or settings that the plugin refuses.
    pub fn complete<S: Slot + ?Sized>(&self, spec: &Spec) -> Result<Spec> {
        let plugin = self.find(S::KIND, &spec.name)?;
        let whole = (plugin.normalise)(&json(spec))?;
        match serde_json::from_str(&whole) {
            Ok(Value::Object(settings)) => Ok(Spec { name: spec.name.clone(), settings }),
            _ => Err(Error::config(format!("{} `{}`", S::KIND, spec.name), "its config is not a table")),
        }
    }

    /// Builds a component.
    ///
    /// # Errors
    /// An unknown name, settings that the plugin refuses, and what its constructor returns.
    pub fn build<S: Slot + ?Sized>(&self, spec: &Spec) -> Result<Box<S>> {
        let plugin = self.find(S::KIND, &spec.name)?;
        let make = S::pick(plugin.factory).ok_or_else(|| Error::unknown(S::KIND.name(), &spec.name, self.names(S::KIND)))?;
        make(&json(spec)).map(S::shield)
    }

    pub(super) fn find(&self, kind: Kind, name: &str) -> Result<&Registration> {
        self.plugins
            .iter()
            .find_map(|((of, known), entry)| (*of == kind && *known == name).then_some(&entry.plugin))
            .ok_or_else(|| Error::unknown(kind.name(), name, self.names(kind)))
    }
}

fn json(spec: &Spec) -> String {
    Value::Object(spec.settings.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{Construct, Documents, TextInput, TextSource};

    #[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct LinesConfig {
        /// Lines at the top that are no documents.
        skip_lines: usize,
    }

    impl Default for LinesConfig {
        fn default() -> Self {
            Self { skip_lines: 1 }
        }
    }

    #[derive(Debug)]
    struct Lines;

    impl Construct for LinesConfig {
        type Output = Lines;

        fn construct(&self) -> Result<Lines> {
            assert!(self.skip_lines < 100, "too many");
            Ok(Lines)
        }
    }

    impl TextSource for Lines {
        fn extensions(&self) -> Vec<String> {
            vec!["lines".into()]
        }

        fn documents(&self, _: TextInput) -> Result<Documents> {
            Ok(Box::new(std::iter::empty()))
        }
    }

    crate::register!(text_source "lines" => LinesConfig, "one document per line");

    #[test]
    fn plugins_are_found_completed_and_built_by_name() {
        let registry = Registry::linked().expect("no name twice");
        assert!(registry.knows(Kind::TextSource, "lines"));
        let whole = registry.complete::<dyn TextSource>(&Spec::named("lines")).expect("defaults");
        assert_eq!(whole, Spec::named("lines").with("skip_lines", 1));
        assert_eq!(registry.build::<dyn TextSource>(&whole).expect("builds").extensions(), ["lines"]);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = Registry::linked().expect("no name twice");
        let error = registry.build::<dyn TextSource>(&Spec::named("line")).expect_err("misspelt");
        assert_eq!(error.to_string(), "unknown text-source `line`, did you mean `lines`?; known: lines");
        let error = registry.build::<dyn TextSource>(&Spec::named("lines").with("skip_line", 2)).expect_err("misspelt key");
        assert_eq!(error.to_string(), "text-source `lines`: unknown key `skip_line`, did you mean `skip_lines`?; known: skip_lines");
        let error = registry.build::<dyn TextSource>(&Spec::named("lines").with("skip_lines", 100)).expect_err("panics");
        assert_eq!(error.to_string(), "text-source `lines` panicked: too many");
    }

    #[test]
    fn a_name_belongs_to_one_plugin() {
        let mut registry = Registry::linked().expect("no name twice");
        let twin = *registry.list().find(|plugin| plugin.name() == "lines").expect("registered above");
        let error = registry.add(twin).expect_err("it is there already");
        assert!(error.to_string().starts_with("text-source `lines` is registered twice: by circuitlab-core"), "{error}");
        assert_eq!(registry.list().count(), Registry::linked().expect("no name twice").list().count());
    }
}
