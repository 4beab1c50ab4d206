//! Finds the files of text that the user's paths name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use circuitlab_core::plugin::Kind;
use circuitlab_core::{Error as CoreError, Registry, Spec, TextSource};
use glob::{MatchOptions, Pattern};

use super::input::Packing;
use super::source::SourceFile;
use crate::hub::{HubKind, HubSpec, fetch_files};
use crate::progress::Progress;
use crate::{Error, Result};

/// Finds the files that paths name: a file stands for itself, a folder for the files of known kinds in it and below, by name; a
/// pattern such as `data/**/*.jsonl.gz` for the files that it fits; `hf:ORG/NAME[@REVISION][/PATTERN]` for those of a data set at the hub, which
/// are fetched. Files and folders whose names begin with a dot, and folders that
/// are links, are passed over in folders.
///
/// `specs` holds the sources whose settings differ from the defaults.
///
/// # Errors
/// No path at all, paths that are not there, extensions that no source reads, folders and patterns without text, and refused settings.
pub fn resolve(registry: &Registry, specs: &[Spec], paths: &[PathBuf], progress: &dyn Progress) -> Result<Vec<SourceFile>> {
    let readers = Readers::build(registry, specs)?;
    if paths.is_empty() {
        return Err(Error::Invalid(format!("no text was given; expected files or folders of {}", readers.known())));
    }
    let mut files = Vec::new();
    for (group, path) in paths.iter().enumerate() {
        let before = files.len();
        if let Some(text) = path.to_str().filter(|text| HubSpec::is_meant(text)) {
            readers.open_fetched(text, group, &mut files, progress)?;
        } else if path.is_dir() {
            readers.open_below(path, group, &mut files)?;
        } else if path.exists() || !is_pattern(path) {
            // Opening a pipe would wait for whoever writes into it.
            if !fs::metadata(path).map_err(CoreError::io("read", path))?.is_file() {
                return Err(CoreError::format(path, "it is no plain file; expected a file, a folder or a pattern").into());
            }
            files.push(readers.open(path, group)?);
        } else {
            readers.open_fitting(path, group, &mut files)?;
        }
        if files.len() == before {
            return Err(CoreError::format(path, format!("it holds no text; known kinds: {}", readers.known())).into());
        }
    }
    Ok(files)
}

/// The sources that `specs` name, and what the user said for all kinds of files: the field or column that holds the text, and whether what
/// cannot be read is left out. Both reach every source that has such a setting; what `specs` say of one source comes first.
///
/// # Errors
/// A setting that no source has, and sources whose settings are refused.
pub fn sources_with(registry: &Registry, specs: &[Spec], text_field: Option<&str>, skip_bad_lines: bool) -> Result<Vec<Spec>> {
    let mut specs = specs.to_vec();
    if let Some(field) = text_field {
        set_in_sources(registry, &mut specs, "field", &field.into())?;
    }
    if skip_bad_lines {
        set_in_sources(registry, &mut specs, "skip_bad_lines", &true.into())?;
    }
    Ok(specs)
}

fn set_in_sources(registry: &Registry, specs: &mut Vec<Spec>, key: &str, value: &serde_json::Value) -> Result<()> {
    let mut found = false;
    for name in registry.names(Kind::TextSource) {
        let place = specs.iter().position(|spec| spec.name == name);
        let whole = registry.complete::<dyn TextSource>(&place.map_or_else(|| Spec::named(&name), |place| specs[place].clone()))?;
        if !whole.settings.contains_key(key) {
            continue;
        }
        found = true;
        match place {
            Some(place) => {
                specs[place].settings.entry(key).or_insert_with(|| value.clone());
            }
            None => specs.push(Spec::named(&name).with(key, value.clone())),
        }
    }
    if found { Ok(()) } else { Err(Error::Invalid(format!("no text source has the setting `{key}`"))) }
}

/// `hf:ORG/NAME@REVISION` and the pattern after it. The revision cannot hold a slash here.
fn split_repository(text: &str) -> (&str, Option<&str>) {
    match text.match_indices('/').nth(1) {
        Some((slash, _)) => (&text[..slash], Some(&text[slash + 1..]).filter(|pattern| !pattern.is_empty())),
        None => (text, None),
    }
}

fn is_pattern(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

/// Every registered source, ready to read.
struct Readers(Vec<(Spec, Arc<dyn TextSource>)>);

impl Readers {
    fn build(registry: &Registry, specs: &[Spec]) -> Result<Self> {
        let named = registry.names(Kind::TextSource).into_iter().filter(|name| specs.iter().all(|spec| spec.name != *name));
        let specs = specs.iter().cloned().chain(named.map(Spec::named));
        let readers = specs.map(|spec| {
            let source: Arc<dyn TextSource> = Arc::from(registry.build::<dyn TextSource>(&spec)?);
            Ok((registry.complete::<dyn TextSource>(&spec)?, source))
        });
        Ok(Self(readers.collect::<Result<_>>()?))
    }

    fn reader(&self, path: &Path) -> Option<&(Spec, Arc<dyn TextSource>)> {
        let extension = Packing::of(path).1;
        self.0.iter().find(|(_, source)| source.extensions().contains(&extension))
    }

    fn open(&self, path: &Path, group: usize) -> Result<SourceFile> {
        let (spec, source) = self.reader(path).ok_or_else(|| {
            let extension = Packing::of(path).1;
            CoreError::format(path, format!("no text source reads files of the kind `.{extension}`; known: {}", self.known()))
        })?;
        SourceFile::new(path, spec.clone(), Arc::clone(source), group)
    }

    fn open_below(&self, folder: &Path, group: usize, files: &mut Vec<SourceFile>) -> Result<()> {
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut entries = entries.map_err(CoreError::io("read", folder))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries.iter().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
            let path = entry.path();
            // Of the entry itself: a link to a folder above would lead around for ever.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.open_below(&path, group, files)?;
            } else if path.is_file() && self.reader(&path).is_some() {
                files.push(self.open(&path, group)?);
            }
        }
        Ok(())
    }

    fn open_fitting(&self, pattern: &Path, group: usize, files: &mut Vec<SourceFile>) -> Result<()> {
        let wrong = |message: String| Error::from(CoreError::format(pattern, message));
        let found = glob::glob(&pattern.to_string_lossy()).map_err(|error| wrong(format!("it is no pattern: {error}")))?;
        let before = files.len();
        for path in found {
            let path = path.map_err(|error| wrong(format!("cannot look for what it fits: {error}")))?;
            if path.is_file() {
                files.push(self.open(&path, group)?);
            }
        }
        if files.len() == before { Err(wrong("no file is there, and as a pattern it fits none".to_owned())) } else { Ok(()) }
    }

    fn open_fetched(&self, text: &str, group: usize, files: &mut Vec<SourceFile>, progress: &dyn Progress) -> Result<()> {
        let (repository, pattern) = split_repository(text);
        let spec = HubSpec::parse(HubKind::Dataset, repository)?;
        let pattern = pattern.map(Pattern::new).transpose().map_err(|error| {
            Error::Invalid(format!("`{}`: what stands after the repository is no pattern: {error}", text.escape_default()))
        })?;
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
        let hidden = |name: &str| name.split('/').any(|part| part.starts_with('.'));
        let fits = |name: &str| pattern.as_ref().map_or(!hidden(name), |pattern| pattern.matches_with(name, options));
        let chosen = fetch_files(&spec, |name| self.reader(Path::new(name)).is_some() && fits(name), progress)?;
        for path in chosen {
            files.push(self.open(&path, group)?);
        }
        Ok(())
    }

    fn known(&self) -> String {
        let mut known: Vec<String> = self.0.iter().flat_map(|(_, source)| source.extensions()).map(|kind| format!("`.{kind}`")).collect();
        known.sort();
        known.dedup();
        format!("{}; text may be packed as `.gz` or `.zst`", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_follow_the_repository() {
        assert_eq!(split_repository("hf:org/text"), ("hf:org/text", None));
        assert_eq!(split_repository("hf:org/text@v1/data/*.parquet"), ("hf:org/text@v1", Some("data/*.parquet")));
        assert_eq!(split_repository("hf:org/text/"), ("hf:org/text", None));
        assert_eq!(split_repository("hf:squad"), ("hf:squad", None));
    }
}
