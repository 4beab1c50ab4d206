//! Run folders: where a training run keeps everything.
//!
//! ```text
//! config.toml       the resolved config           log.txt         what happened, with times
//! metrics.jsonl     one record a line             events.*        the same for TensorBoard
//! plots/*.svg       the same, drawn               checkpoints/    step-00000400/: a CLT folder with train/ beside it
//! final/            the trained CLT folder
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use circuitlab_core::{Error as CoreError, files};

use crate::{Error, Result};

/// A run folder and its log.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    log: File,
    started: Instant,
}

impl RunFolder {
    /// Makes a new run folder, `config.toml` and all, in one step.
    ///
    /// # Errors
    /// [`Error::Exists`] when the place is taken, and what the file system returns.
    pub fn create(path: &Path, config: &str) -> Result<Self> {
        Self::check_free(path)?;
        let part = files::part_path(path);
        if part.exists() {
            fs::remove_dir_all(&part).map_err(CoreError::io("remove", &part))?;
        }
        fs::create_dir_all(part.join("checkpoints")).map_err(CoreError::io("create", &part))?;
        files::write_atomic(&part.join("config.toml"), |out| out.write_all(config.as_bytes()))?;
        files::publish_folder(&part, path)?;
        Self::open(path)
    }

    /// Checks that a new run may be made here: nothing is there, or an empty folder.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn check_free(path: &Path) -> Result<()> {
        let taken = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => path.exists(),
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
        let log = path.join("log.txt");
        let log = OpenOptions::new().create(true).append(true).open(&log).map_err(CoreError::io("write", &log))?;
        Ok(Self { path: path.to_path_buf(), log, started: Instant::now() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved config.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Where checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where the trained CLT lies.
    pub fn result(&self) -> PathBuf {
        self.path.join("final")
    }

    /// Adds a line to the log, after the seconds since this process opened the run.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn log(&mut self, line: &str) -> Result<()> {
        tracing::info!("{line}");
        let seconds = self.started.elapsed().as_secs_f64();
        let path = self.path.join("log.txt");
        writeln!(self.log, "{seconds:9.1} s  {line}").map_err(CoreError::io("write", &path)).map_err(Error::from)
    }
}
