//! Log lines on stderr, as far as the user asked.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// Says what to log to stderr, such as `debug` or `circuitlab::train=trace,warn`; stronger than `-v` and `-q`.
pub const VARIABLE: &str = "CIRCUITLAB_LOG";

/// Starts logging. `verbosity` is the number of `-v` less the number of `-q`: warnings at 0, then `info`, `debug`,
/// `trace`; errors only at -1, nothing below. Lines appear above the bars of `bars`.
///
/// # Errors
/// When the environment variable [`VARIABLE`] is no filter, or logging was started before.
pub fn start(verbosity: i8, bars: &MultiProgress) -> Result<()> {
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).with_context(|| format!("{VARIABLE} is `{text}`, which is no log filter"))?
        }
        _ => EnvFilter::default().add_directive(level(verbosity).into()),
    };
    let stderr = fmt::layer().without_time().with_target(false).with_ansi(colours()).with_writer(AboveBars(bars.clone()));
    tracing_subscriber::registry().with(stderr.with_filter(filter)).try_init().context("logging was started before")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_chooses_the_level() {
        assert_eq!(
            (-2..=3).map(level).map(|level| level.to_string()).collect::<Vec<_>>(),
            ["off", "error", "warn", "info", "debug", "trace"]
        );
    }
}
