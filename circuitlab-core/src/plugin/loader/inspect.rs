//! What a library's file says of itself, read without running any of it.

use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSegment, ObjectSymbol};
use sha2::{Digest, Sha256};

use crate::files::hexadecimal;
use crate::plugin::abi::{AbiHeader, Difference, HEADER_SYMBOL};
use crate::plugin::services::ENTRY_SYMBOL;
use crate::{Error, Result};

/// No plugin library is larger; a file that is was named by mistake, and is not read.
const MOST_BYTES: u64 = 4 << 30;

/// A library that has a header.
#[derive(Debug, Clone)]
pub struct PluginFile {
    path: PathBuf,
    sha256: String,
    header: AbiHeader,
}

/// Reads a library's header.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read, and [`Error::Plugin`] for one that is not a whole library or not a plugin.
pub fn inspect(path: &Path) -> Result<PluginFile> {
    let about = fs::metadata(path).map_err(Error::io("read", path))?;
    if !about.is_file() || about.len() > MOST_BYTES {
        return Err(Error::plugin(path, "expected a shared library, such as target/release/libmy_plugin.so"));
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let header = header(&bytes).map_err(|message| Error::plugin(path, message))?;
    let sha256 = hexadecimal(&Sha256::digest(&bytes));
    Ok(PluginFile { path: path.to_path_buf(), sha256, header })
}

impl PluginFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SHA-256 of its bytes, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// What it was built with.
    pub fn header(&self) -> &AbiHeader {
        &self.header
    }

    /// The package that it was built from.
    pub fn package(&self) -> &str {
        self.header.value("+package")
    }

    /// That package's version.
    pub fn version(&self) -> &str {
        self.header.value("+version")
    }

    /// What keeps this program from using it.
    pub fn differences(&self) -> Vec<Difference> {
        self.header.differences()
    }

    /// Checks that there is no difference.
    ///
    /// # Errors
    /// [`Error::Plugin`] with all of them.
    pub fn check(&self) -> Result<()> {
        let differences: Vec<String> = self.differences().iter().map(ToString::to_string).collect();
        if differences.is_empty() {
            return Ok(());
        }
        let package = format!("{} {}", self.package(), self.version());
        let message = format!("{package} was built otherwise than this program: {}; build it again", differences.join("; "));
        Err(Error::plugin(&self.path, message))
    }
}

/// Finds the header in a library's bytes.
fn header(bytes: &[u8]) -> Result<AbiHeader, String> {
    let damaged = |error: object::Error| format!("not a whole shared library: {error}");
    let file = object::File::parse(bytes).map_err(damaged)?;
    // A cut file may well parse; to map it and touch what is missing would end the process.
    for segment in file.segments() {
        let (offset, size) = segment.file_range();
        if offset.checked_add(size).is_none_or(|end| end > bytes.len() as u64) {
            return Err("not a whole shared library: it ends before its last segment; copy or build it again".to_owned());
        }
    }
    let find = |name: &str| {
        // Some systems put an underscore before the names of C.
        let named = |symbol: &object::Symbol<'_, '_>| {
            symbol.is_definition() && symbol.name().is_ok_and(|symbol| symbol.strip_prefix('_').unwrap_or(symbol) == name)
        };
        let symbol = file.dynamic_symbols().find(named).or_else(|| file.symbols().find(named));
        symbol.ok_or_else(|| format!("not a CircuitLab plugin: it exports no `{name}`; was it built without `--features dynamic`?"))
    };
    let address = find(HEADER_SYMBOL)?.address();
    find(ENTRY_SYMBOL)?;
    let size = AbiHeader::BYTES as u64;
    let content = file.segments().find_map(|segment| segment.data_range(address, size).ok().flatten());
    content.and_then(AbiHeader::read).ok_or_else(|| "its plugin header is damaged, or of another release of CircuitLab".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_library_is_named() {
        let folder = std::env::temp_dir();
        assert!(inspect(&folder).expect_err("a folder").to_string().contains("expected a shared library"));
        assert!(inspect(&folder.join("no-such-plugin.so")).expect_err("missing").to_string().starts_with("cannot read"));
        assert!(header(b"just text").expect_err("text").starts_with("not a whole shared library"));
        let program = fs::read(std::env::current_exe().expect("this test")).expect("this test");
        assert!(header(&program).expect_err("a program").starts_with("not a CircuitLab plugin"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused_in_one_line(noise: Vec<u8>) {
            for bytes in [noise.clone(), [b"\x7fELF\x02\x01\x01\0".as_slice(), &noise].concat()] {
                let message = header(&bytes).expect_err("no plugin");
                proptest::prop_assert!(!message.contains('\n'), "{}", message);
            }
        }
    }
}
