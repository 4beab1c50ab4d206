//! Folders in object stores.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use circuitlab_core::Error as CoreError;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, Error as StoreError, GetOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions, PutPayload,
    RetryConfig, UpdateVersion, aws, azure, gcp,
};
use reqwest::Url;

use super::folder::{Condition, Entries, Stored, Version};
use super::runtime::wait;
use crate::{Error, Result};

/// How often a request is made again; with the pauses between, a store may be away for about ten seconds.
const RETRIES: usize = 6;
/// The first pause; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(150);
/// Requests of one reader that are under way together.
const TOGETHER: usize = 8;

/// What URLs begin with: S3, Google's and Azure's stores, each by all its names.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss"];

/// A prefix of a bucket.
#[derive(Debug, Clone)]
pub(in crate::cache) struct Remote {
    store: Arc<dyn ObjectStore>,
    /// The same store, which makes each request once: conditional writes are made again here, where it is known what was tried.
    once: Arc<dyn ObjectStore>,
    prefix: Key,
    url: String,
}

impl Remote {
    /// Opens a store by its URL and the environment variables that its users know. Asks it for nothing.
    pub(super) fn open(text: &str) -> Result<Self> {
        let wrong = |message: String| Error::Invalid(format!("place `{text}`: {message}"));
        let url = Url::parse(text).map_err(|error| wrong(format!("it is no URL: {error}")))?;
        if !SCHEMES.contains(&url.scheme()) {
            return Err(wrong(known_schemes()));
        }
        let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|error| wrong(told(&error.into())))?;
        // Whoever set one before had reason to.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let with = |retries| build(&scheme, text, retries).map_err(|error| wrong(error.map_or_else(known_schemes, |error| told(&error))));
        Ok(Self { store: with(RETRIES)?, once: with(0)?, prefix, url: text.trim_end_matches('/').to_owned() })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn join(&self, folder: &str) -> Self {
        Self { prefix: self.prefix.clone().join(folder), url: format!("{}/{folder}", self.url), ..self.clone() }
    }

    /// What lies below; an object store has no empty folders.
    pub(super) fn entries(&self) -> Result<Entries> {
        let listed = wait(self.store.list_with_delimiter(Some(&self.prefix)))?;
        let listed = listed.map_err(|error| failed("read", PathBuf::from(&self.url), &error))?;
        let name = |key: &Key| key.filename().map(str::to_owned);
        Ok(Entries {
            folders: listed.common_prefixes.iter().filter_map(name).collect(),
            files: listed.objects.iter().filter_map(|object| Some((name(&object.location)?, object.size))).collect(),
        })
    }

    pub(super) fn length(&self, file: &str) -> Result<Option<u64>> {
        match wait(self.store.head(&self.key(file)))? {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("read", self.path(file), &error)),
        }
    }

    pub(super) fn read(&self, file: &str) -> Result<Stored> {
        let key = self.key(file);
        let read = wait(async {
            let found = self.store.get(&key).await?;
            let version = Version { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            Ok(Stored { bytes: found.bytes().await?.to_vec(), version })
        })?;
        read.map_err(|error| failed("read", self.path(file), &error))
    }

    /// A file's first bytes, at most so many, and its length.
    pub(super) fn head(&self, file: &str, bytes: u64) -> Result<(Vec<u8>, u64)> {
        let key = self.key(file);
        let read = wait(async {
            let options = GetOptions { range: Some((0..bytes).into()), ..GetOptions::default() };
            let found = self.store.get_opts(&key, options).await?;
            let length = found.meta.size;
            Ok((found.bytes().await?.to_vec(), length))
        })?;
        read.map_err(|error| failed("read", self.path(file), &error))
    }

    /// Stretches of a file, several requests at a time.
    pub(super) fn ranges(&self, file: &str, ranges: &[Range<u64>]) -> Result<Vec<Vec<u8>>> {
        let key = &self.key(file);
        let requests = stream::iter(ranges.iter().cloned()).map(|range| async move {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            self.store.get_range(key, range).await.map(|bytes| bytes.to_vec())
        });
        let read = wait(requests.buffered(TOGETHER).try_collect())?;
        read.map_err(|error| failed("read", self.path(file), &error))
    }

    pub(super) fn write(&self, file: &str, bytes: Vec<u8>, condition: Condition<'_>) -> Result<Version> {
        let mode = match condition {
            Condition::Always => {
                let put = wait(self.store.put(&self.key(file), PutPayload::from(bytes)))?;
                return put
                    .map(|done| Version { e_tag: done.e_tag, version: done.version })
                    .map_err(|e| failed("write", self.path(file), &e));
            }
            Condition::New => PutMode::Create,
            Condition::Replaces(known) => PutMode::Update(UpdateVersion { e_tag: known.e_tag.clone(), version: known.version.clone() }),
        };
        self.replace(file, &bytes, &mode)
    }

    /// Writes where the condition holds. An answer that does not arrive says nothing about whether the write did; then what is there is
    /// looked at, so that a write is neither lost nor taken for somebody else's.
    fn replace(&self, file: &str, bytes: &[u8], mode: &PutMode) -> Result<Version> {
        let key = self.key(file);
        let payload = PutPayload::from(bytes.to_vec());
        let mut doubtful = false;
        for attempt in 0.. {
            let error = match wait(self.once.put_opts(&key, payload.clone(), PutOptions::from(mode.clone())))? {
                Ok(done) => return Ok(Version { e_tag: done.e_tag, version: done.version }),
                Err(error) => error,
            };
            let refused = matches!(error, StoreError::Precondition { .. } | StoreError::AlreadyExists { .. });
            if (refused && doubtful)
                && let Ok(there) = self.read(file)
                && there.bytes == bytes
            {
                return Ok(there.version);
            }
            if refused {
                let hint = "another process has written this part meanwhile; wait for it, or give each job its own number".to_owned();
                return Err(Error::Exists { path: self.path(file), hint });
            }
            if attempt >= RETRIES || !matches!(error, StoreError::Generic { .. }) {
                return Err(failed("write", self.path(file), &error));
            }
            doubtful = true;
            std::thread::sleep(PAUSE * (1 << attempt));
        }
        Err(Error::Invalid(format!("cannot write `{}/{file}`", self.url)))
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("{}/{file}", self.url))
    }

    fn key(&self, file: &str) -> Key {
        self.prefix.clone().join(file)
    }
}

/// Builds a store; nothing where the scheme is none of ours.
fn build(scheme: &ObjectStoreScheme, url: &str, retries: usize) -> Result<Arc<dyn ObjectStore>, Option<StoreError>> {
    let backoff = BackoffConfig { init_backoff: PAUSE, max_backoff: Duration::from_secs(5), base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: retries, retry_timeout: Duration::from_mins(1) };
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let builder = aws::AmazonS3Builder::from_env().with_url(url).with_retry(retry);
            // Whoever names an address of plain http means it.
            let plain = std::env::var("AWS_ENDPOINT_URL").is_ok_and(|endpoint| endpoint.starts_with("http://"));
            let builder = if plain && std::env::var_os("AWS_ALLOW_HTTP").is_none() { builder.with_allow_http(true) } else { builder };
            Arc::new(builder.build().map_err(Some)?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            Arc::new(gcp::GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry).build().map_err(Some)?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            Arc::new(azure::MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retry).build().map_err(Some)?)
        }
        _ => return Err(None),
    })
}

fn known_schemes() -> String {
    "expected a path, or a URL of `s3://`, `gs://`, `az://` or `file://`".to_owned()
}

fn failed(action: &'static str, path: PathBuf, error: &StoreError) -> Error {
    let kind = match error {
        StoreError::NotFound { .. } => ErrorKind::NotFound,
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        _ => ErrorKind::Other,
    };
    let text = if kind == ErrorKind::NotFound { "there is no such object".to_owned() } else { told(error) };
    CoreError::Io { action, path, source: io::Error::new(kind, text) }.into()
}

/// An error and its last cause, which names the trouble, in one line.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    let last = cause.map(ToString::to_string).unwrap_or_default();
    if !text.contains(&last) {
        text = format!("{text}: {last}");
    }
    let line: Vec<&str> = text.split_whitespace().collect();
    line.join(" ").chars().take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_schemes_are_refused() {
        for (url, expected) in
            [("ftp://host/cache", "`s3://`, `gs://`"), ("http://host/cache", "`s3://`, `gs://`"), ("s3://", "place `s3://`")]
        {
            let error = Remote::open(url).expect_err("no store").to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
