//! The list of a folder's graphs that viewers begin with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use circuitlab_core::{Error as CoreError, files};
use serde_json::{Map, Value, json};

use super::json::{check_slug, write_json};
use super::{GraphMeta, JsonOptions, Pruned, Rows};
use crate::{Error, Result};

/// The list's name.
pub const GRAPH_LIST: &str = "graph-metadata.json";
/// How long another process may take to enter its graph.
const PATIENCE: Duration = Duration::from_secs(30);

/// Writes a graph that was pruned into a folder of graphs: as `{slug}.json`, and into the list. Gives back the file's path.
///
/// # Errors
/// A slug that cannot name a file, else as [`write_json`] and [`enter`].
pub fn write_into(folder: &Path, rows: &impl Rows, meta: &GraphMeta, pruned: &Pruned, options: &JsonOptions) -> Result<PathBuf> {
    let slug = options.slug.as_ref().unwrap_or(&meta.slug);
    check_slug(slug)?;
    fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
    let path = folder.join(format!("{slug}.json"));
    let entry = write_json(&path, rows, meta, pruned, options)?;
    enter(folder, entry)?;
    Ok(path)
}

/// Enters a graph's metadata at the end of a folder's list, in the place of one with the same slug. Several processes may do so at once.
///
/// # Errors
/// A list that cannot be read or is none, and a folder that another process keeps locked.
pub fn enter(folder: &Path, entry: Map<String, Value>) -> Result<()> {
    let path = folder.join(GRAPH_LIST);
    let lock = lock(folder)?;
    let mut list = read(&path)?;
    let slug = entry.get("slug").cloned();
    if let Some(graphs) = list.get_mut("graphs").and_then(Value::as_array_mut) {
        graphs.retain(|graph| graph.get("slug") != slug.as_ref());
        graphs.push(Value::Object(entry));
    }
    let text = serde_json::to_string_pretty(&list).map_err(io::Error::other).map_err(CoreError::io("write", &path))?;
    files::write_atomic(&path, |out| writeln!(out, "{text}"))?;
    drop(lock);
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let wrong =
        |why: String| Error::from(CoreError::format(path, format!("it is no list of graphs, expected `{{\"graphs\": [..]}}`{why}")));
    match fs::read(path) {
        Ok(bytes) => {
            let list: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(format!(": {error}")))?;
            if list.get("graphs").is_some_and(Value::is_array) { Ok(list) } else { Err(wrong(String::new())) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({"graphs": []})),
        Err(error) => Err(CoreError::io("read", path)(error).into()),
    }
}

/// Waits for the folder, which is locked only while a list is written.
fn lock(folder: &Path) -> Result<fs::File> {
    let begin = Instant::now();
    loop {
        if let Some(lock) = files::try_lock_folder(folder)? {
            return Ok(lock);
        }
        if begin.elapsed() > PATIENCE {
            let message = format!("another process has kept it locked for {} s; its list of graphs cannot be written", PATIENCE.as_secs());
            return Err(CoreError::format(folder, message).into());
        }
        sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(slug: &str, prompt: &str) -> Map<String, Value> {
        Map::from_iter([("slug".to_owned(), json!(slug)), ("prompt".to_owned(), json!(prompt))])
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "lists by others are what this test is about")]
    fn an_entry_takes_the_place_of_its_slug_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(GRAPH_LIST);
        fs::write(&path, r#"{"by": "another", "graphs": [{"slug": "a", "title_prefix": "x"}, {"slug": "b", "kept": 1}]}"#).expect("writes");
        enter(folder.path(), entry("a", "new")).expect("enters");
        let list: Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("is JSON");
        assert_eq!(list, json!({"by": "another", "graphs": [{"slug": "b", "kept": 1}, {"slug": "a", "prompt": "new"}]}));
        for other in ["", "[]", r#"{"graphs": {}}"#, "{\"graphs\": ["] {
            fs::write(&path, other).expect("writes");
            let error = enter(folder.path(), entry("a", "new")).expect_err(other).to_string();
            assert!(error.contains("it is no list of graphs") && !error.contains('\n'), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("reads"), other, "what is no list is left alone");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
        assert!(enter(&folder.path().join("none"), entry("a", "")).is_err());
    }

    #[test]
    fn nobody_who_writes_at_once_is_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let folder = folder.path();
                scope.spawn(move || (0..8).for_each(|at| enter(folder, entry(&format!("{thread}-{at}"), "")).expect("enters")));
            }
        });
        let list = read(&folder.path().join(GRAPH_LIST)).expect("reads");
        assert_eq!(list["graphs"].as_array().expect("a list").len(), 32);
    }
}
