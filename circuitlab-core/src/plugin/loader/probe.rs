//! Trying a library in a child process: what ends the child would have ended this process.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::inspect::PluginFile;
use crate::{Error, Result, files};

/// A library that takes longer to load will not load at all.
const LIMIT: Duration = Duration::from_mins(1);

/// The exit code of a child that loaded the library. Not 0, with which a library may end its process too.
pub const PASSED: u8 = 86;

/// How a library is tried.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The program, this one as a rule, which loads the library without a probe and exits with [`PASSED`], or with 1 on an error.
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
        command.args(&self.args).arg(file.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| Error::plugin(file.path(), format!("it cannot be tried: {error}")))?;
        let status = wait(child, file)?;
        let passed = status.code() == Some(i32::from(PASSED));
        // What a child can say, an error, this process will find again by itself.
        if !passed && status.code() != Some(1) {
            return Err(Error::plugin(file.path(), format!("it ends the process that loads it ({status})")));
        }
        if let Some(mark) = mark.filter(|_| passed) {
            // Only time is lost where it cannot be remembered.
            let _ = mark.parent().map(fs::create_dir_all);
            let _ = files::write_atomic(&mark, |_| Ok(()));
        }
        Ok(())
    }
}

fn wait(mut child: Child, file: &PluginFile) -> Result<ExitStatus> {
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
            Err(error) => return Err(Error::plugin(file.path(), format!("it cannot be tried: {error}"))),
        }
    }
}
