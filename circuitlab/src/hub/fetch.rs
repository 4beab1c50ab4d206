//! What the engine asks for: a model's folder, the files of a data set.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use super::client::{Client, Remote};
use super::download::blob;
use super::fault::{Fault, TRIES};
use super::settings::Settings;
use super::spec::HubSpec;
use super::store::{Store, is_file_name};
use crate::{Error, Progress, Result};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What is fetched of a model beside its weights, where it has them; the first it must have.
const DESCRIPTION: [&str; 3] = ["config.json", "tokenizer.json", "generation_config.json"];

/// Gives the local folder of a model's snapshot, in which are `config.json`, its weights as safetensors, and `tokenizer.json` and
/// `generation_config.json` where it has them. What the cache lacks is fetched, and nothing else of the repository.
///
/// # Errors
/// [`Error::Hub`] for a hub that refuses, breaks off, or sends something else than it said; a repository without a model; a disk that
/// is full.
pub fn fetch_model(spec: &HubSpec, progress: &dyn Progress) -> Result<PathBuf> {
    let hub = Hub::new(spec, Settings::from_env()?, progress);
    let found = hub.find(|found| hub.has_model(found))?;
    hub.fetch(&found, &hub.model_files(&found)?)?;
    hub.fetch(&found, &hub.shards(&found)?)?;
    hub.store.keep_commit(&found.commit);
    Ok(hub.store.snapshot(&found.commit))
}

/// The names of all files of a repository, in order. Without a network, of all that the cache has of it.
///
/// # Errors
/// As [`fetch_model`].
pub fn list(spec: &HubSpec) -> Result<Vec<String>> {
    let hub = Hub::new(spec, Settings::from_env()?, &crate::Silent);
    Ok(hub.find(|found| found.listed)?.files)
}

/// Gives the local paths of those files of a repository that `choose` wants, in the order of their names in it, such as
/// `data/train-00000-of-00002.parquet`. What the cache lacks is fetched.
///
/// # Errors
/// As [`fetch_model`], and where no file is wanted.
pub fn fetch_files(spec: &HubSpec, choose: impl Fn(&str) -> bool, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
    let hub = Hub::new(spec, Settings::from_env()?, progress);
    let chosen = |found: &Found| found.files.iter().filter(|file| choose(file)).cloned().collect::<Vec<_>>();
    let found = hub.find(|found| {
        let chosen = chosen(found);
        !chosen.is_empty() && chosen.iter().all(|file| hub.store.has(&found.commit, file))
    })?;
    let files = chosen(&found);
    if files.is_empty() {
        let message = format!("none of its {} files is of the kind that is looked for: {}", found.files.len(), some(&found.files));
        return Err(hub.error(Fault::Final(message), None));
    }
    hub.fetch(&found, &files)?;
    hub.store.keep_commit(&found.commit);
    let folder = hub.store.snapshot(&found.commit);
    Ok(files.iter().map(|file| folder.join(file)).collect())
}

/// One repository, where it is asked for.
struct Hub<'a> {
    spec: &'a HubSpec,
    settings: Settings,
    store: Store,
    client: Client,
    progress: &'a dyn Progress,
}

/// A commit, and the names of its files.
struct Found {
    commit: String,
    files: Vec<String>,
    /// Whether these are all, as a hub told them; else they are those in the cache.
    listed: bool,
    /// Whether missing files may be asked for.
    online: bool,
}

impl<'a> Hub<'a> {
    fn new(spec: &'a HubSpec, settings: Settings, progress: &'a dyn Progress) -> Self {
        let (store, client) = (Store::new(&settings.cache, spec), Client::new(&settings));
        Self { spec, settings, store, client, progress }
    }

    fn error(&self, fault: Fault, file: Option<&str>) -> Error {
        fault.tell(self.spec, file)
    }

    /// The commit that is meant: as the hub has it, or else the cache, if that is `whole`.
    fn find(&self, whole: impl Fn(&Found) -> bool) -> Result<Found> {
        let cached = self.cached();
        if self.settings.offline {
            return cached.ok_or_else(|| self.error(Fault::Final(self.not_cached("the repository")), None));
        }
        let cached_whole = cached.as_ref().is_some_and(&whole);
        // What a commit holds never changes.
        let cached = match cached {
            Some(found) if self.spec.commit().is_some() && (found.listed || cached_whole) => return Ok(Found { online: true, ..found }),
            other => other.filter(|_| cached_whole),
        };
        match (self.client.info(self.spec, if cached_whole { 1 } else { TRIES }), cached) {
            (Ok(info), _) => {
                let mut files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
                files.sort();
                self.store.keep_listing(&info.sha, &files);
                Ok(Found { commit: info.sha, files, listed: true, online: true })
            }
            (Err(Fault::Passing { message, .. }), Some(cached)) => {
                tracing::warn!("hub: {message}; going on with what the cache has of `{}`, commit {}", self.spec, cached.commit);
                Ok(cached)
            }
            (Err(fault), _) => Err(self.error(fault, None)),
        }
    }

    /// What the cache knows of it.
    fn cached(&self) -> Option<Found> {
        let commit = self.spec.commit().map(str::to_owned).or_else(|| self.store.commit())?;
        let listing = self.store.listing(&commit);
        let (listed, files) = (listing.is_some(), listing.unwrap_or_else(|| self.store.present(&commit)));
        (!files.is_empty()).then_some(Found { commit, files, listed, online: false })
    }

    fn not_cached(&self, what: &str) -> String {
        let folder = self.store.folder().display();
        format!("HF_HUB_OFFLINE is set, and {what} cannot be had from the cache (`{folder}`); unset it, or fetch it once with a network")
    }

    /// Whether everything of a model is in the cache. Of a snapshot that others made it is not known whether there are more files than
    /// these, so it needs its tokenizer too.
    fn has_model(&self, found: &Found) -> bool {
        let has = |files: &[String]| files.iter().all(|file| self.store.has(&found.commit, file));
        let described = found.listed || self.store.has(&found.commit, DESCRIPTION[1]);
        described && self.model_files(found).is_ok_and(|files| has(&files)) && self.shards(found).is_ok_and(|files| has(&files))
    }

    /// What is fetched of a model, but for its shards.
    fn model_files(&self, found: &Found) -> Result<Vec<String>> {
        let there = |file: &&str| found.files.iter().any(|known| known == file);
        // What the cache alone knows of says nothing of what the repository has.
        let wrong = |what: &str, message: String| {
            let message = if found.listed { message } else { self.not_cached(what) };
            Err(self.error(Fault::Final(message), None))
        };
        if !there(&DESCRIPTION[0]) {
            return wrong(
                "its config.json",
                format!("it has no config.json, so it is no model that can be opened here; it has: {}", some(&found.files)),
            );
        }
        let Some(weights) = [WEIGHTS, INDEX].into_iter().find(there) else {
            return wrong("its weights", format!("it has neither {WEIGHTS} nor {INDEX}; it has: {}", some(&found.files)));
        };
        Ok(DESCRIPTION.into_iter().filter(there).chain([weights]).map(str::to_owned).collect())
    }

    /// The weight files that the index names, where the weights are in several.
    fn shards(&self, found: &Found) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        if !self.model_files(found)?.iter().any(|file| file == INDEX) {
            return Ok(Vec::new());
        }
        let path = self.store.snapshot(&found.commit).join(INDEX);
        let bytes = fs::read(&path).map_err(circuitlab_core::Error::io("read", &path))?;
        let wrong = |message: String| Error::from(circuitlab_core::Error::format(&path, message));
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("no index of weights: {error}")))?;
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        match shards.iter().find(|shard| !is_file_name(shard)) {
            Some(shard) => Err(wrong(format!("it names the file `{}`, which is no name of a file", shard.escape_default()))),
            None => Ok(shards.into_iter().collect()),
        }
    }

    /// Brings the files that are missing into the cache.
    fn fetch(&self, found: &Found, files: &[String]) -> Result<()> {
        let missing: Vec<&String> = files.iter().filter(|file| !self.store.has(&found.commit, file)).collect();
        if let Some(first) = missing.first().filter(|_| !found.online) {
            return Err(self.error(Fault::Final(self.not_cached("it")), Some(first)));
        }
        let mut wanted: Vec<(&str, String, Remote)> = Vec::with_capacity(missing.len());
        for file in missing {
            let url = self.client.url(self.spec, &found.commit, file);
            let remote = self.client.remote(&url).map_err(|fault| self.error(fault, Some(file)))?;
            wanted.push((file, url, remote));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let total = wanted.iter().map(|(_, _, remote)| remote.size).fold(0, u64::saturating_add);
        self.progress.begin(&format!("fetch {}", self.spec.name()), total, "bytes");
        let mut before = 0_u64;
        for (file, url, remote) in wanted {
            let mut at = |done: u64| self.progress.at(before.saturating_add(done), file);
            blob(&self.client, &self.store, &url, &remote, &mut at).map_err(|fault| self.error(fault, Some(file)))?;
            self.store.link(&found.commit, file, &self.store.blob(&remote.etag))?;
            before = before.saturating_add(remote.size);
        }
        self.progress.end();
        Ok(())
    }
}

/// The first few names, for people.
fn some(files: &[String]) -> String {
    let shown: Vec<String> = files.iter().take(8).map(|file| format!("`{}`", file.escape_default())).collect();
    let more = if files.len() > shown.len() { ", .." } else { "" };
    if shown.is_empty() { "nothing".to_owned() } else { format!("{}{more}", shown.join(", ")) }
}
