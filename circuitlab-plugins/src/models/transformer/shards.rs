//! The safetensors files of a folder as one set of tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::error::nearest;
use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{Error, Result, config};
use serde::Deserialize;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// One `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<TensorFile>,
    places: BTreeMap<String, usize>,
    /// What errors about a missing tensor name: the single file or the index.
    list: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let single = folder.join(SINGLE);
        let index = folder.join(INDEX);
        if single.exists() {
            let file = TensorFile::open(&single)?;
            let places = file.names()?.into_iter().map(|name| (name, 0)).collect();
            return Ok(Self { files: vec![file], places, list: single });
        }
        if index.exists() {
            return Self::from_index(folder, index);
        }
        Err(Error::format(folder, format!("it holds no weights; expected `{SINGLE}` or `{INDEX}`")))
    }

    fn from_index(folder: &Path, list: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&list).map_err(Error::io("read", &list))?;
        let value = serde_json::from_str(&text).map_err(|error| Error::format(&list, format!("not valid JSON: {error}")))?;
        let index: Index = config::read(&format!("`{}`", list.display()), value)?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut places = BTreeMap::new();
        for shard in index.weight_map.values().collect::<BTreeSet<_>>() {
            // An index comes with the download: it must not reach files outside of its folder.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(Error::format(&list, format!("shard `{shard}` is no plain file name")));
            }
            let file = TensorFile::open(&folder.join(shard))?;
            let held: BTreeSet<String> = file.names()?.into_iter().collect();
            for (name, _) in index.weight_map.iter().filter(|(_, of)| *of == shard) {
                if !held.contains(name) {
                    return Err(Error::format(file.path(), format!("it has no tensor `{name}`, which `{INDEX}` places there")));
                }
                places.insert(name.clone(), files.len());
            }
            files.push(file);
        }
        Ok(Self { files, places, list })
    }

    /// The names of all tensors, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The file that holds a tensor.
    pub(super) fn holding(&self, name: &str) -> Result<&TensorFile> {
        self.places.get(name).and_then(|place| self.files.get(*place)).ok_or_else(|| {
            let hint = nearest(name, self.names()).map_or_else(String::new, |near| format!(", the nearest is `{near}`"));
            Error::format(&self.list, format!("it has no tensor `{name}`{hint}"))
        })
    }
}
