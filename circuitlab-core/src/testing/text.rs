//! The suite of text sources.

use std::path::Path;

use crate::{Error, Result, TextSource};

/// Checks that a source reads a file of its kind as it promises: the same documents every time, none of them empty, and
/// errors instead of panics for files that are missing or cut. `path` is a good file that holds `expected`.
///
/// # Panics
/// With the promise that is broken.
pub fn conforms(source: &dyn TextSource, path: &Path, expected: &[&str]) {
    let extensions = source.extensions();
    assert!(!extensions.is_empty(), "it reads no kind of file");
    for extension in extensions {
        assert!(!extension.is_empty() && !extension.starts_with('.'), "`{extension}` is no extension");
    }
    for _ in 0..2 {
        let documents = read(source, path).expect("the good file is read");
        assert!(documents.iter().map(String::as_str).eq(expected.iter().copied()), "got {documents:?}, expected {expected:?}");
    }
    assert!(survives_cuts(source, path), "it panics on a file that is cut short");
    let error = read(source, &path.with_file_name("no-such-file")).expect_err("a file that is not there cannot be read");
    assert!(matches!(error, Error::Io { .. }), "a missing file should give an `Error::Io`, not: {error}");
    assert!(!error.to_string().contains('\n'), "an error is one line, not: {error}");
}

fn read(source: &dyn TextSource, path: &Path) -> Result<Vec<String>> {
    source.documents(path)?.collect()
}

/// Cuts the file at every sixteenth of its length; what is left may be text or not, and must not panic.
fn survives_cuts(source: &dyn TextSource, path: &Path) -> bool {
    let bytes = std::fs::read(path).expect("the good file is there");
    let cut = path.with_extension(format!("cut.{}", source.extensions()[0]));
    let fine = (0..16).all(|sixteenth| {
        let part = &bytes[..bytes.len() * sixteenth / 16];
        crate::files::write_atomic(&cut, |out| out.write_all(part)).expect("the folder of the good file can be written");
        !matches!(crate::error::catch_panic("text source", || read(source, &cut)), Err(Error::Panicked { .. }))
    });
    std::fs::remove_file(&cut).expect("it was written above");
    fine
}
