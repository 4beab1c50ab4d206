//! Run folders: where a training run keeps everything.
//!
//! ```text
//! config.toml       the resolved config           origin.json     the cache that it was started on
//! log.txt           what happened, with times
//! metrics.jsonl     one record a line             events.*        the same for TensorBoard (as sinks are chosen)
//! plots/*.svg       the same, drawn               checkpoints/    step-00000400/: a CLT folder with train/ beside it
//! final/            the trained CLT folder
//! ```
//!
//! A run of several transcoders has `config.toml`, `origin.json` and `log.txt` of its own, and a run folder for each of them by its name.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use circuitlab_core::plugin::Provider;
use circuitlab_core::{Error as CoreError, files};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A run folder and its log.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    started: Instant,
    /// Nothing where another rank writes.
    writer: Option<Writer>,
}

/// What the process has that writes to a run folder.
#[derive(Debug)]
struct Writer {
    log: File,
    /// Held so that no second process works on the same run.
    _lock: File,
}

/// `origin.json`: what a run was started on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Digest of the cache.
    pub cache: String,
    /// Version of this crate.
    pub version: String,
    /// Who provided the plugins that the run names.
    #[serde(default)]
    pub providers: Vec<Provider>,
}

impl Origin {
    /// Reads it from a run folder.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join("origin.json");
        let text = fs::read_to_string(&path).map_err(CoreError::io("read", &path))?;
        serde_json::from_str(&text).map_err(|error| CoreError::format(&path, error.to_string()).into())
    }
}

impl RunFolder {
    /// Makes a new run folder, `config.toml` last: without it no folder is a run.
    ///
    /// # Errors
    /// [`Error::Exists`] when the place is taken, and what the file system returns.
    pub fn create(path: &Path, config: &str, origin: &Origin) -> Result<Self> {
        Self::check_free(path)?;
        let fill = |folder: &Path| -> Result<()> {
            let origin = serde_json::to_vec_pretty(origin).map_err(|error| Error::Invalid(error.to_string()))?;
            files::write_atomic(&folder.join("origin.json"), |out| out.write_all(&origin))?;
            Ok(files::write_atomic(&folder.join("config.toml"), |out| out.write_all(config.as_bytes()))?)
        };
        // An empty folder that is there may be a mount or a link, over which nothing can be renamed.
        if path.exists() {
            fill(path)?;
        } else {
            files::write_folder(path, fill)?;
        }
        Self::open(path)
    }

    /// Checks that a new run may be made here: nothing is there, or an empty folder.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn check_free(path: &Path) -> Result<()> {
        let taken = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => fs::symlink_metadata(path).is_ok(),
        };
        if taken {
            let hint = "choose another --out, or continue that run with --resume".to_owned();
            return Err(Error::Exists { path: path.to_path_buf(), hint });
        }
        Ok(())
    }

    /// Opens a run folder to go on with it.
    ///
    /// # Errors
    /// A folder that is no run folder.
    pub fn open(path: &Path) -> Result<Self> {
        let config = path.join("config.toml");
        if !config.is_file() {
            return Err(CoreError::format(path, "no run folder: it holds no `config.toml`").into());
        }
        let lock = files::try_lock_folder(path)?.ok_or_else(|| Error::Exists {
            path: path.to_path_buf(),
            hint: "and another process is training in it; wait for it, or choose another --out".to_owned(),
        })?;
        let log = path.join("log.txt");
        let log = OpenOptions::new().create(true).append(true).open(&log).map_err(CoreError::io("write", &log))?;
        Ok(Self { path: path.to_path_buf(), started: Instant::now(), writer: Some(Writer { log, _lock: lock }) })
    }

    /// The run folder that another rank of the same run writes to.
    pub fn of_another_rank(path: &Path) -> Self {
        Self { path: path.to_path_buf(), started: Instant::now(), writer: None }
    }

    /// Whether this process writes to it.
    pub fn is_written_here(&self) -> bool {
        self.writer.is_some()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where the trained CLT lies.
    pub fn result(&self) -> PathBuf {
        self.path.join("final")
    }

    /// Adds a line to the log, after the seconds since this process opened the run; where another rank writes, to this process's own only.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn log(&mut self, line: &str) -> Result<()> {
        tracing::info!("{line}");
        let seconds = self.started.elapsed().as_secs_f64();
        let path = self.path.join("log.txt");
        let Some(Writer { log, .. }) = &mut self.writer else { return Ok(()) };
        writeln!(log, "{seconds:9.1} s  {line}").map_err(CoreError::io("write", &path)).map_err(Error::from)
    }
}
