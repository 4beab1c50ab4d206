//! SHA-256 of files and bytes, in hexadecimal.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use circuitlab_core::files::hexadecimal;
use sha2::{Digest, Sha256};

use crate::Result;

/// The digest of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// The digest of a file, and its length in bytes.
///
/// # Errors
/// A file that cannot be read.
pub fn sha256_file(path: &Path) -> Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    let mut file = File::open(path).map_err(circuitlab_core::Error::io("read", path))?;
    loop {
        let got = file.read(&mut buffer).map_err(circuitlab_core::Error::io("read", path))?;
        if got == 0 {
            return Ok((hexadecimal(&hasher.finalize()), length));
        }
        hasher.update(&buffer[..got]);
        length += got as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
