//! Trying a library in a child process: what ends the child would have ended this process.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::inspect::PluginFile;
use crate::{Error, Result, files};

/// A library that takes longer to load will not load at all.
const LIMIT: Duration = Duration::from_mins(1);

/// What a child prints last when it has loaded the library. An exit code alone would not tell: a library may end its process with
/// any, and before it is loaded.
pub const PASSED: &str = "the library was loaded";

/// What a child prints last, before the reason, when the library cannot be loaded.
pub const REFUSED: &str = "the library was refused: ";

/// How a library is tried.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The program, this one as a rule, which loads the library without a probe and then prints [`PASSED`], or [`REFUSED`] and the error in one line.
    pub program: PathBuf,
    /// Its arguments; the library's path is added as the last one.
    pub args: Vec<OsString>,
    /// A folder in which libraries that passed are remembered by their digest, so that each is tried once.
    pub passed: Option<PathBuf>,
}

impl Probe {
    /// Tries a library, unless it passed before.
    ///
    /// # Errors
    /// [`Error::Plugin`] for a library that ends the process that loads it, or does not come to an end.
    pub(super) fn try_out(&self, file: &PluginFile) -> Result<()> {
        // Another build of this program may meet the same file otherwise.
        let key = format!("{}-{}", file.sha256(), file.header().value("core-source"));
        let mark = self.passed.as_ref().map(|folder| folder.join(key));
        if mark.as_ref().is_some_and(|mark| mark.exists()) {
            return Ok(());
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg(file.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| cannot_try(file, &error))?;
        let status = wait(&mut child, file)?;
        let mut said = String::new();
        if let Some(mut out) = child.stdout.take() {
            out.read_to_string(&mut said).map_err(|error| cannot_try(file, &error))?;
        }
        match said.lines().last().unwrap_or_default() {
            PASSED => {}
            last => {
                let ended = || Error::plugin(file.path(), format!("it ends the process that loads it ({status})"));
                return Err(last.strip_prefix(REFUSED).map_or_else(ended, |reason| Error::Invalid(reason.to_owned())));
            }
        }
        if let Some(mark) = mark {
            // Only time is lost where it cannot be remembered.
            let _ = mark.parent().map(fs::create_dir_all);
            let _ = files::write_atomic(&mark, |_| Ok(()));
        }
        Ok(())
    }
}

fn cannot_try(file: &PluginFile, error: &io::Error) -> Error {
    Error::plugin(file.path(), format!("it cannot be tried: {error}"))
}

fn wait(child: &mut Child, file: &PluginFile) -> Result<ExitStatus> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if begun.elapsed() < LIMIT => sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::plugin(file.path(), format!("it is not loaded after {} s", LIMIT.as_secs())));
            }
            Err(error) => return Err(cannot_try(file, &error)),
        }
    }
}
