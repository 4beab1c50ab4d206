//! Log lines: to stderr as far as the user asked, and to a run's `log.txt`.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Says what to log to stderr, such as `debug` or `circuitlab::train=trace,warn`; stronger than `-v` and `-q`.
pub const VARIABLE: &str = "CIRCUITLAB_LOG";

/// A file that takes the log too, once it is opened.
#[derive(Debug, Clone, Default)]
pub struct LogFile(Arc<Mutex<Option<File>>>);

impl LogFile {
    /// Appends all later log lines of level `info` and above to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot write the log `{}`", path.display()))?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }
}

/// Starts logging. `verbosity` is the number of `-v` less the number of `-q`: warnings at 0, then `info`, `debug`,
/// `trace`; errors only at -1, nothing below. Lines appear above the bars of `bars`.
///
/// # Errors
/// When the environment variable [`VARIABLE`] is no filter, or logging was started before.
pub fn start(verbosity: i8, bars: &MultiProgress) -> Result<LogFile> {
    let log_file = LogFile::default();
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).with_context(|| format!("{VARIABLE} is `{text}`, which is no log filter"))?
        }
        _ => EnvFilter::default().add_directive(level(verbosity).into()),
    };
    let stderr = fmt::layer().without_time().with_target(false).with_ansi(colours()).with_writer(AboveBars(bars.clone()));
    let file = fmt::layer().with_ansi(false).with_writer(log_file.clone());
    let registry = tracing_subscriber::registry()
        .with(stderr.with_filter(filter))
        .with(file.with_filter(Targets::new().with_default(level(verbosity).max(LevelFilter::INFO))));
    registry.try_init().context("logging was started before")?;
    Ok(log_file)
}

/// Whether stderr should be coloured: on terminals, unless `NO_COLOR` is set.
pub fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn level(verbosity: i8) -> LevelFilter {
    match verbosity {
        ..=-2 => LevelFilter::OFF,
        -1 => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        3.. => LevelFilter::TRACE,
    }
}

/// Writes to stderr without tearing a progress bar apart.
#[derive(Debug, Clone)]
struct AboveBars(MultiProgress);

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write_all(line)).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(file) => file.write_all(line).map(|()| line.len()),
            None => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_takes_lines_once_it_is_open() {
        let path = std::env::temp_dir().join(format!("circuitlab-log-{}.txt", std::process::id()));
        let mut log = LogFile::default();
        log.write_all(b"lost\n").expect("goes nowhere");
        log.open(&path).expect("a file");
        log.clone().write_all(b"kept\n").expect("writes");
        assert_eq!(std::fs::read(&path).expect("reads"), b"kept\n");
        std::fs::remove_file(&path).expect("clean up");
        let error = log.open(Path::new("nowhere/log.txt")).expect_err("no folder");
        assert_eq!(error.to_string(), "cannot write the log `nowhere/log.txt`");
    }

    #[test]
    fn verbosity_chooses_the_level() {
        assert_eq!(
            (-2..=3).map(level).map(|level| level.to_string()).collect::<Vec<_>>(),
            ["off", "error", "warn", "info", "debug", "trace"]
        );
    }
}
