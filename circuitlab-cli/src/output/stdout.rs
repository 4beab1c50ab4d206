//! Results, on stdout.

use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};

/// Prints text and a line end. A reader that went away, such as `head`, is no error.
///
/// # Errors
/// When stdout cannot be written, such as a full disk behind a redirection.
pub fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}
