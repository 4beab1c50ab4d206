//! The suite of text sources.

use std::fs;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use crate::error::catch_panic;
use crate::text::PIECE_BYTES;
use crate::{Content, Error, Result, TextInput, TextSource};

/// Checks that a source reads a file of its kind as it promises: the same documents every time, none of them empty, in pieces
/// of the right size, and errors instead of panics for files that are cut or cannot be read on. `path` is a good file that holds
/// `expected`.
///
/// # Panics
/// With the promise that is broken.
pub fn conforms(source: &dyn TextSource, path: &Path, expected: &[impl Into<Content> + Clone]) {
    let extensions = source.extensions();
    assert!(!extensions.is_empty(), "it reads no kind of file");
    for extension in extensions {
        assert!(!extension.is_empty() && !extension.starts_with('.'), "`{extension}` is no extension");
    }
    let expected: Vec<Content> = expected.iter().cloned().map(Into::into).collect();
    for _ in 0..2 {
        let found = documents(source, path).expect("the good file is read");
        assert!(found == expected, "got {found:?}, expected {expected:?}");
    }
    assert!(survives_cuts(source, path), "it panics on a file that is cut short");
    stops_at_failures(source, path);
}

/// The documents of a file, each put together from its pieces.
///
/// # Errors
/// The source's first.
///
/// # Panics
/// For pieces of the wrong size or of mixed kinds, and documents without an end.
pub fn documents(source: &dyn TextSource, path: &Path) -> Result<Vec<Content>> {
    read(source, TextInput::open(path)?)
}

fn read(source: &dyn TextSource, input: TextInput) -> Result<Vec<Content>> {
    let mut documents = Vec::new();
    let mut open: Option<Content> = None;
    for piece in source.documents(input)? {
        let piece = piece?;
        assert!(piece.bytes() <= PIECE_BYTES, "a piece of {} bytes; expected at most {PIECE_BYTES}", piece.bytes());
        let whole = match (open.take(), piece.content) {
            (None, content) => content,
            (Some(Content::Text(begun)), Content::Text(more)) => Content::Text(begun + &more),
            (Some(Content::Tokens(begun)), Content::Tokens(more)) => Content::Tokens([begun, more].concat()),
            (Some(_), _) => panic!("a document has pieces of different kinds"),
        };
        if piece.last {
            let empty =
                matches!(&whole, Content::Text(text) if text.is_empty()) || matches!(&whole, Content::Tokens(ids) if ids.is_empty());
            assert!(!empty, "document {} is empty", documents.len());
            documents.push(whole);
        } else {
            open = Some(whole);
        }
    }
    assert!(open.is_none(), "the last document has no end");
    Ok(documents)
}

/// Cuts the file at every sixteenth of its length; what is left may be text or not, and must not panic.
fn survives_cuts(source: &dyn TextSource, path: &Path) -> bool {
    let bytes = fs::read(path).expect("the good file is there");
    let cut = path.with_extension(format!("cut.{}", source.extensions()[0]));
    let fine = (0..16).all(|sixteenth| {
        let part = &bytes[..bytes.len() * sixteenth / 16];
        crate::files::write_atomic(&cut, |out| out.write_all(part)).expect("the folder of the good file can be written");
        !matches!(catch_panic("text source", || documents(source, &cut)), Err(Error::Panicked { .. }))
    });
    fs::remove_file(&cut).expect("it was written above");
    fine
}

/// A file that cannot be read on is an error with its name, not the end of the file. A source that opens the path itself is given one
/// that is not there.
fn stops_at_failures(source: &dyn TextSource, path: &Path) {
    let missing = path.with_file_name("no-such-file");
    let bytes = fs::read(path).expect("the good file is there");
    let half = Cursor::new(bytes[..bytes.len() / 2].to_vec());
    let input = TextInput { path: missing.clone(), reader: Box::new(BufReader::new(half.chain(Broken))) };
    let error = read(source, input).expect_err("a file that cannot be read on is an error");
    assert!(matches!(&error, Error::Io { path, .. } if *path == missing), "it should give an `Error::Io` of the file, not: {error}");
    assert!(!error.to_string().contains('\n'), "an error is one line, not: {error}");
}

/// A disk that is gone.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}
