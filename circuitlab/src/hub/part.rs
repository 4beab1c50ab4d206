//! A file that is not whole yet.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;
use circuitlab_core::files::hexadecimal;
use sha2::{Digest, Sha256};

use super::client::Remote;
use super::fault::Fault;
use crate::Result;

/// What stands after a blob's name as long as it is not whole; `huggingface_hub` has the same.
const EXTENSION: &str = ".incomplete";

fn part_of(blob: &Path) -> PathBuf {
    let mut name = blob.file_name().unwrap_or_default().to_os_string();
    name.push(EXTENSION);
    blob.with_file_name(name)
}

/// The beginning of a blob, with the hash of it so far.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    /// Bytes that are there.
    pub(super) length: u64,
    /// How many connections they came over; what another process left counts for one.
    pub(super) pieces: u32,
}

impl Part {
    /// Opens what an earlier process left of a blob, if that can be checked later on, or begins anew.
    pub(super) fn open(blob: &Path, remote: &Remote) -> Result<Self> {
        let path = part_of(blob);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(CoreError::io("create", &path))?;
        let mut part = Self { path, file, hasher: Sha256::new(), length: 0, pieces: 0 };
        let there = part.file.metadata().map_err(CoreError::io("read", &part.path))?.len();
        if remote.sha256().is_some() && there <= remote.size {
            part.inherit()?;
        } else {
            part.restart()?;
        }
        Ok(part)
    }

    /// Hashes what is there.
    fn inherit(&mut self) -> Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let got = self.file.read(&mut buffer).map_err(CoreError::io("read", &self.path))?;
            if got == 0 {
                self.pieces = u32::from(self.length > 0);
                return Ok(());
            }
            self.hasher.update(&buffer[..got]);
            self.length += got as u64;
        }
    }

    /// Forgets what is there.
    pub(super) fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(CoreError::io("write", &self.path))?;
        (self.hasher, self.length, self.pieces) = (Sha256::new(), 0, 0);
        Ok(())
    }

    /// Adds bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(CoreError::io("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its name if it is what the hub said; what is wrong never gets it, and is deleted.
    pub(super) fn finish(self, blob: &Path, remote: &Remote) -> Result<(), Fault> {
        let got = hexadecimal(&self.hasher.finalize());
        let wrong = if self.length == remote.size {
            let hash = remote.sha256().filter(|expected| !expected.eq_ignore_ascii_case(&got));
            hash.map(|expected| format!("its SHA-256 is {got}, and the hub says {expected}"))
        } else {
            Some(format!("it has {} bytes, and the hub says {}", self.length, remote.size))
        };
        if let Some(wrong) = wrong {
            fs::remove_file(&self.path).map_err(CoreError::io("remove", &self.path))?;
            return Err(Fault::Final(format!("what came is not the file: {wrong}; it was deleted")));
        }
        let done: io::Result<()> = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        Ok(done.map_err(CoreError::io("write", blob))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_was_left_counts_where_it_can_be_checked() {
        let folder = tempfile::tempdir().expect("a folder");
        let large = Remote { etag: ABC.to_owned(), size: 3 };
        let blob = folder.path().join(ABC);
        let mut part = Part::open(&blob, &large).expect("opens");
        part.push(b"ab").expect("writes");
        drop(part);
        let mut part = Part::open(&blob, &large).expect("opens");
        assert_eq!((part.length, part.pieces), (2, 1));
        part.push(b"c").expect("writes");
        part.finish(&blob, &large).expect("whole and right");
        assert_eq!(fs::read(&blob).expect("there"), b"abc");

        // Too long to be its beginning, or of a file whose content nobody can check.
        for remote in [Remote { size: 1, ..large.clone() }, Remote { etag: "e7a6".into(), size: 3 }] {
            let blob = folder.path().join(&remote.etag);
            circuitlab_core::files::write_atomic(&part_of(&blob), |out| out.write_all(b"ab")).expect("writes");
            assert_eq!(Part::open(&blob, &remote).expect("opens").length, 0);
        }
    }

    #[test]
    fn what_is_wrong_is_deleted() {
        let folder = tempfile::tempdir().expect("a folder");
        let blob = folder.path().join("blob");
        for (bytes, words) in [(&b"abd"[..], "its SHA-256 is"), (b"ab", "it has 2 bytes, and the hub says 3")] {
            let remote = Remote { etag: ABC.to_owned(), size: 3 };
            let mut part = Part::open(&blob, &remote).expect("opens");
            part.push(bytes).expect("writes");
            let Err(Fault::Final(message)) = part.finish(&blob, &remote) else { panic!("it was taken") };
            assert!(message.contains(words), "{message}");
            assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
        }
    }
}
