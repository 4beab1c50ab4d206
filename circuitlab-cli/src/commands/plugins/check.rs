//! `plugins check`.

use std::collections::BTreeSet;
use std::env::consts::DLL_EXTENSION;
use std::path::{Path, PathBuf};

use anyhow::bail;
use circuitlab::plugins::files_in;
use circuitlab_core::plugin::loader::{PluginFile, inspect};
use circuitlab_core::{Registration, Registry};
use serde_json::{Value, json};

use super::load::{load_one, loader};
use crate::args::PluginsCheckArgs;
use crate::commands::Context;
use crate::output::report::chain;

/// What became of one file.
struct Verdict {
    file: String,
    library: Option<PluginFile>,
    outcome: anyhow::Result<Vec<Registration>>,
}

pub(super) fn run(args: &PluginsCheckArgs, context: &Context) -> anyhow::Result<()> {
    let mut registry = context.registry.clone();
    let verdicts: Vec<Verdict> = files(args)?.iter().map(|file| verdict(file, &mut registry)).collect();
    context.print(&verdicts.iter().map(json).collect::<Vec<_>>(), || verdicts.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    match verdicts.iter().filter(|verdict| verdict.outcome.is_err()).count() {
        0 => Ok(()),
        1 if verdicts.len() == 1 => bail!("`{}` cannot be used", verdicts[0].file),
        some => bail!("{some} of {} libraries cannot be used", verdicts.len()),
    }
}

/// The libraries that are meant, each once.
fn files(args: &PluginsCheckArgs) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut known) = (Vec::new(), BTreeSet::new());
    for path in &args.files {
        let inside = files_in(path)?;
        if inside.is_empty() {
            bail!("`{}` holds no shared libraries; expected files that end in `.{DLL_EXTENSION}`", path.display());
        }
        files.extend(inside.into_iter().filter(|file| known.insert(file.canonicalize().unwrap_or_else(|_| file.clone()))));
    }
    Ok(files)
}

fn verdict(path: &Path, registry: &mut Registry) -> Verdict {
    let file = path.display().to_string();
    match inspect(path) {
        Err(error) => Verdict { file, library: None, outcome: Err(error.into()) },
        Ok(library) => Verdict { file, library: Some(library), outcome: try_out(path, registry) },
    }
}

/// Loads a library beside the plugins of this program and of the libraries before it, so that a clash of names shows too.
fn try_out(path: &Path, registry: &mut Registry) -> anyhow::Result<Vec<Registration>> {
    let mut with = registry.clone();
    load_one(&loader(), path, &mut with)?;
    let known = |plugin: &Registration| registry.knows(plugin.kind(), plugin.name());
    let new = with.list().filter(|plugin| !known(plugin)).copied().collect();
    *registry = with;
    Ok(new)
}

fn text(verdict: &Verdict) -> String {
    let package = verdict.library.as_ref().map(|library| format!("{} {}", library.package(), library.version())).unwrap_or_default();
    match &verdict.outcome {
        Ok(plugins) => {
            let named: Vec<String> = plugins.iter().map(|plugin| format!("{} `{}`", plugin.kind(), plugin.name())).collect();
            format!("{}: yes: {package} brings {}", verdict.file, named.join(", "))
        }
        Err(error) => {
            let differences = verdict.library.as_ref().map(PluginFile::differences).unwrap_or_default();
            if differences.is_empty() {
                return format!("{}: no: {}", verdict.file, chain(error));
            }
            let lines: Vec<String> = differences.iter().map(|difference| format!("  {difference}")).collect();
            format!("{}: no: {package} was built otherwise than this program\n{}", verdict.file, lines.join("\n"))
        }
    }
}

fn json(verdict: &Verdict) -> Value {
    let library = verdict.library.as_ref();
    let built_with: serde_json::Map<String, Value> =
        library.iter().flat_map(|library| library.header().facts()).map(|(key, value)| (key.to_owned(), value.into())).collect();
    let differences: Vec<Value> = library
        .iter()
        .flat_map(|library| library.differences())
        .map(|difference| json!({"key": difference.key, "host": difference.host, "plugin": difference.plugin}))
        .collect();
    let plugins = |plugins: &Vec<Registration>| -> Vec<Value> {
        plugins.iter().map(|plugin| json!({"kind": plugin.kind().name(), "name": plugin.name()})).collect()
    };
    json!({
        "file": verdict.file, "usable": verdict.outcome.is_ok(), "error": verdict.outcome.as_ref().err().map(chain),
        "package": library.map(PluginFile::package), "version": library.map(PluginFile::version), "built_with": built_with,
        "differences": differences, "plugins": verdict.outcome.as_ref().map(plugins).unwrap_or_default(),
    })
}
