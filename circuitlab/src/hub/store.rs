//! The cache on disk, in the layout of Python's `huggingface_hub`:
//!
//! ```text
//! models--ORG--NAME/refs/main                    the commit that a branch was at
//! models--ORG--NAME/snapshots/COMMIT/FILE        a link to
//! models--ORG--NAME/blobs/ETAG                   the bytes; `ETAG.incomplete` while they come
//! .locks/models--ORG--NAME/ETAG.lock             held by whoever fetches them
//! ```
//!
//! And one of ours, which Python leaves alone: `models--ORG--NAME/.circuitlab/COMMIT.json`, the names of all files of a commit.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use circuitlab_core::Error as CoreError;
use circuitlab_core::files::write_atomic;
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::spec::{HubKind, HubSpec, is_plain_name};
use crate::Result;

/// How often a lock that somebody holds is tried.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// One repository's folder in the cache.
#[derive(Debug)]
pub(super) struct Store {
    layout: CacheRepo,
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl Store {
    pub(super) fn new(cache: &Path, spec: &HubSpec) -> Self {
        let repository = repository(spec);
        let name = repository.folder_name();
        let (folder, locks) = (cache.join(&name), cache.join(".locks").join(&name));
        Self { layout: Cache::new(cache.to_path_buf()).repo(repository), folder, locks, revision: spec.revision().to_owned() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Where the revision was when it was last fetched whole.
    pub(super) fn commit(&self) -> Option<String> {
        let commit = fs::read_to_string(self.reference()).ok()?.trim().to_owned();
        is_plain_name(&commit).then_some(commit)
    }

    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(&self.revision)
    }

    /// Keeps where the revision is. Only what works without a network depends on it, so a cache that cannot be written is no error.
    pub(super) fn keep_commit(&self, commit: &str) {
        if self.revision != commit && self.commit().as_deref() != Some(commit) {
            self.keep(&self.reference(), commit.as_bytes());
        }
    }

    fn record(&self, commit: &str) -> PathBuf {
        self.folder.join(".circuitlab").join(format!("{commit}.json"))
    }

    /// The names of all files of a commit, where a hub has told them.
    pub(super) fn listing(&self, commit: &str) -> Option<Vec<String>> {
        let files: Vec<String> = serde_json::from_slice(&fs::read(self.record(commit)).ok()?).ok()?;
        files.iter().all(|file| is_file_name(file)).then_some(files)
    }

    /// Keeps them; as with [`Store::keep_commit`], it is no error where that cannot be.
    pub(super) fn keep_listing(&self, commit: &str, files: &[String]) {
        if let Ok(text) = serde_json::to_vec(files)
            && self.listing(commit).as_deref() != Some(files)
        {
            self.keep(&self.record(commit), &text);
        }
    }

    fn keep(&self, path: &Path, content: &[u8]) {
        let kept = || {
            // Two processes would write the same temporary file.
            let _lock = self.lock("circuitlab")?;
            make_parent(path)?;
            Ok::<_, crate::Error>(write_atomic(path, |out| out.write_all(content))?)
        };
        if let Err(error) = kept() {
            tracing::debug!(%error, path = %path.display(), "not kept");
        }
    }

    /// The names of the files that are there of a commit.
    pub(super) fn present(&self, commit: &str) -> Vec<String> {
        let mut files = Vec::new();
        gather(&self.snapshot(commit), "", &mut files);
        files.sort();
        files
    }

    /// Whether a commit's file is there, and not a link to nothing.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Gives a blob its name in a commit.
    pub(super) fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<()> {
        let place = self.snapshot(commit).join(file);
        make_parent(&place)?;
        if place.is_symlink() && !place.exists() {
            // Its blob was deleted.
            fs::remove_file(&place).map_err(CoreError::io("remove", &place))?;
        }
        match link(blob, &place, file.split('/').count()) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => Ok(other.map_err(CoreError::io("create", &place))?),
        }
    }

    /// Waits until no other process holds this lock, and holds it as long as what is given back lives.
    pub(super) fn lock(&self, name: &str) -> Result<File> {
        let path = self.locks.join(format!("{name}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path).map_err(CoreError::io("create", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(lock = %path.display(), "hub: waiting for another process that fetches the same file");
                    }
                    std::thread::sleep(LOCK_EVERY);
                }
                // Some network file systems have no locks; a blob is checked before it gets its name.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
            }
        }
    }
}

/// The repository in the words of hf-hub, which knows the hub's addresses and names of folders.
pub(super) fn repository(spec: &HubSpec) -> Repo {
    let kind = match spec.kind() {
        HubKind::Model => RepoType::Model,
        HubKind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(spec.name().to_owned(), kind, spec.revision().to_owned())
}

/// Whether a hub's name of a file is one: below the snapshot's folder and nowhere else.
pub(super) fn is_file_name(file: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.chars().any(|one| one.is_control() || one == '\\');
    let normal = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    file.len() < 1024 && normal && file.split('/').all(plain)
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    Ok(fs::create_dir_all(parent).map_err(CoreError::io("create", parent))?)
}

fn gather(folder: &Path, prefix: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if path.is_file() {
            files.push(name);
        } else if path.is_dir() && !path.is_symlink() {
            gather(&path, &format!("{name}/"), files);
        }
    }
}

/// A relative link, so that the cache can be moved; `depth` is the number of parts of the file's name.
#[cfg(unix)]
fn link(blob: &Path, place: &Path, depth: usize) -> io::Result<()> {
    let mut target: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    target.extend(["blobs".as_ref(), blob.file_name().unwrap_or_default()]);
    std::os::unix::fs::symlink(target, place)
}

/// As `huggingface_hub` does where links need rights that users do not have.
#[cfg(not(unix))]
fn link(blob: &Path, place: &Path, _: usize) -> io::Result<()> {
    fs::rename(blob, place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn store(cache: &Path) -> Store {
        Store::new(cache, &HubSpec::parse(HubKind::Dataset, "hf:org/name@a/b").expect("a repository"))
    }

    #[test]
    fn a_blob_gets_its_names_by_relative_links() {
        let cache = tempfile::tempdir().expect("a folder");
        let store = store(cache.path());
        assert_eq!(store.folder(), cache.path().join("datasets--org--name"));
        let blob = store.blob("e7a6");
        make_parent(&blob).expect("a folder");
        store.link(COMMIT, "data/a.txt", &blob).expect("links");
        assert!(!store.has(COMMIT, "data/a.txt"), "a link to nothing is no file");
        write_atomic(&blob, |out| out.write_all(b"text")).expect("writes");
        for _ in 0..2 {
            store.link(COMMIT, "data/a.txt", &blob).expect("links");
        }
        store.link(COMMIT, "b.txt", &blob).expect("links");
        assert_eq!(store.present(COMMIT), ["b.txt", "data/a.txt"]);
        // The whole cache can be moved.
        let moved = tempfile::tempdir().expect("a folder");
        fs::rename(store.folder(), moved.path().join("datasets--org--name")).expect("moves");
        assert!(super::tests::store(moved.path()).has(COMMIT, "data/a.txt"));
    }

    #[test]
    fn commits_and_listings_are_kept() {
        let cache = tempfile::tempdir().expect("a folder");
        let store = store(cache.path());
        assert_eq!((store.commit(), store.listing(COMMIT)), (None, None));
        store.keep_commit(COMMIT);
        store.keep_listing(COMMIT, &["a".to_owned()]);
        assert_eq!(fs::read_to_string(store.folder().join("refs/a/b")).expect("written"), COMMIT);
        assert_eq!((store.commit().as_deref(), store.listing(COMMIT)), (Some(COMMIT), Some(vec!["a".to_owned()])));
        store.keep(&store.record(COMMIT), br#"["../../x"]"#);
        assert_eq!(store.listing(COMMIT), None, "a name that leads out is not believed");
        store.keep(&store.reference(), b"../../..");
        assert_eq!(store.commit(), None);
    }

    proptest! {
        #[test]
        fn names_of_files_never_lead_out(file in "[a./\\\\ \\PC]{0,12}") {
            if is_file_name(&file) {
                let joined = Path::new("/top").join(&file);
                prop_assert!(joined.starts_with("/top") && joined != Path::new("/top"));
                prop_assert!(joined.components().all(|part| part != Component::ParentDir));
            }
        }
    }
}
