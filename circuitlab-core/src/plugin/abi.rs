//! The first thing that is read of a plugin library, before any of its code runs: what it was built with.
//!
//! Rust has no stable binary interface, so a host and a library understand each other only when both were built by one compiler from
//! one source of this crate. The header states both sides' builds as text; every key but those that begin with `+` must be equal.

use std::fmt;

use super::layout;

/// The name of the exported header.
#[cfg(feature = "loader")]
pub(super) const HEADER_SYMBOL: &str = "CIRCUITLAB_PLUGIN_ABI";

const MAGIC: [u8; 16] = *b"circuitlab abi 1";
const TEXT_BYTES: usize = 2024;

/// The version of `tch`, whose tensors cross; its `Cargo.toml` entry pins it.
const TCH: &str = "0.24.0";

/// What a library exports. Its fields are never reordered, and it holds no pointers, so that the bytes in the file are those in memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AbiHeader {
    magic: [u8; 16],
    len: u64,
    text: [u8; TEXT_BYTES],
}

impl AbiHeader {
    /// The header of this build of this crate, in a package of that name and version. Texts that are too long fail to compile.
    pub const fn current(package: &str, version: &str) -> Self {
        Self { magic: MAGIC, len: 0, text: [0; TEXT_BYTES] }
            .line("core", env!("CARGO_PKG_VERSION"))
            .line("core-source", env!("CIRCUITLAB_ABI_SOURCE"))
            .line("core-features", env!("CIRCUITLAB_ABI_FEATURES"))
            .line("core-layout", layout::DIGEST.as_str())
            .line("rustc", env!("CIRCUITLAB_ABI_RUSTC"))
            .line("target", env!("CIRCUITLAB_ABI_TARGET"))
            .line("panic", if cfg!(panic = "unwind") { "unwind" } else { "abort" })
            .line("cpu", env!("CIRCUITLAB_ABI_CPU"))
            .line("tch", TCH)
            .line("libtorch", env!("CIRCUITLAB_ABI_LIBTORCH"))
            .line("+package", package)
            .line("+version", version)
    }

    const fn line(self, key: &str, value: &str) -> Self {
        self.push(key.as_bytes()).push(b"=").push(value.as_bytes()).push(b"\n")
    }

    const fn push(mut self, bytes: &[u8]) -> Self {
        let mut at = 0;
        while at < bytes.len() {
            self.text[self.len as usize] = bytes[at];
            self.len += 1;
            at += 1;
        }
        self
    }

    /// How many bytes a header has.
    pub const BYTES: usize = size_of::<Self>();

    /// Reads a header's bytes as they lie in a file; none where they are no header.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.get(..Self::BYTES)?.split_at(MAGIC.len());
        let (len, text) = rest.split_at(8);
        let header = Self { magic: magic.try_into().ok()?, len: u64::from_le_bytes(len.try_into().ok()?), text: text.try_into().ok()? };
        (header.magic == MAGIC && header.lines().is_some()).then_some(header)
    }

    /// Its keys and values, in order; none where it was damaged.
    fn lines(&self) -> Option<Vec<(&str, &str)>> {
        let text = std::str::from_utf8(self.text.get(..usize::try_from(self.len).ok()?)?).ok()?;
        let lines: Vec<(&str, &str)> = text.split_terminator('\n').map(|line| line.split_once('=')).collect::<Option<_>>()?;
        let twice = lines.iter().enumerate().any(|(at, (key, _))| lines[..at].iter().any(|(earlier, _)| earlier == key));
        // What is printed to a terminal must not command it.
        (!twice && !text.contains(|letter: char| letter.is_control() && letter != '\n')).then_some(lines)
    }

    /// The keys that must agree and their values.
    pub fn facts(&self) -> Vec<(&str, &str)> {
        self.lines().unwrap_or_default().into_iter().filter(|(key, _)| !key.starts_with('+')).collect()
    }

    /// The value of a key, `+package` for instance; empty where there is none.
    pub fn value(&self, key: &str) -> &str {
        self.lines().unwrap_or_default().into_iter().find_map(|(known, value)| (known == key).then_some(value)).unwrap_or_default()
    }

    /// What keeps a library with this header from being used by this build on this machine, compilers first.
    pub fn differences(&self) -> Vec<Difference> {
        let host = Self::current("", "");
        let mut keys: Vec<&str> = host.facts().into_iter().chain(self.facts()).map(|(key, _)| key).collect();
        keys.sort_by_key(|key| (*key != "rustc", *key));
        keys.dedup();
        keys.into_iter().filter_map(|key| difference(key, host.value(key), self.value(key))).collect()
    }
}

impl fmt::Debug for AbiHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.lines().unwrap_or_default()).finish()
    }
}

/// A key in which a library and this program differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key, such as `rustc`.
    pub key: String,
    /// The value of this program; for `cpu`, what this machine has not.
    pub host: String,
    /// The value of the library.
    pub plugin: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "cpu" => write!(f, "cpu: {}", self.host),
            key => write!(f, "{key}: host `{}`, plugin `{}`", self.host, self.plugin),
        }
    }
}

fn difference(key: &str, host: &str, plugin: &str) -> Option<Difference> {
    let differs = |host: String| Some(Difference { key: key.to_owned(), host, plugin: plugin.to_owned() });
    if key != "cpu" {
        return if host == plugin { None } else { differs(host.to_owned()) };
    }
    // A library may use less of the processor than this program does, and more if the machine has it.
    let missing: Vec<&str> = plugin.split(',').filter(|feature| !machine_has(feature)).collect();
    if missing.is_empty() { None } else { differs(format!("this machine lacks {}", missing.join(", "))) }
}

/// Whether the processor has a feature of the compiler's list. Those that no library is built for by hand count as there.
fn machine_has(feature: &str) -> bool {
    macro_rules! detect {
        ($($name:tt)*) => {
            match feature {
                $(#[cfg(target_arch = "x86_64")]
                $name => std::arch::is_x86_feature_detected!($name),)*
                _ => true,
            }
        };
    }
    detect!("sse3" "ssse3" "sse4.1" "sse4.2" "popcnt" "avx" "avx2" "fma" "f16c" "bmi1" "bmi2" "lzcnt" "movbe" "aes" "pclmulqdq" "sha" "gfni" "vaes"
        "vpclmulqdq" "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bitalg"
        "avx512vpopcntdq" "avx512bf16" "avx512fp16")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(header: &AbiHeader) -> Vec<u8> {
        let mut bytes = header.magic.to_vec();
        bytes.extend(header.len.to_le_bytes());
        bytes.extend(header.text);
        bytes
    }

    /// A header with one value changed, whatever its length.
    fn with(key: &str, value: &str) -> AbiHeader {
        let current = AbiHeader::current("mine", "1.2.3");
        let blank = AbiHeader { magic: MAGIC, len: 0, text: [0; TEXT_BYTES] };
        let lines = current.lines().expect("its own");
        lines.into_iter().fold(blank, |header, (known, old)| header.line(known, if known == key { value } else { old }))
    }

    #[test]
    fn a_header_is_read_back_from_its_bytes() {
        let header = AbiHeader::current("mine", "1.2.3");
        let back = AbiHeader::read(&bytes(&header)).expect("its own bytes");
        assert_eq!((back.value("+package"), back.value("+version"), back.value("core")), ("mine", "1.2.3", env!("CARGO_PKG_VERSION")));
        assert!(back.differences().is_empty(), "{:?}", back.differences());
        for key in ["rustc", "core-source", "core-layout", "target", "libtorch"] {
            assert!(!back.value(key).is_empty(), "{key}");
        }
    }

    #[test]
    fn every_key_that_differs_is_named_and_the_compiler_first() {
        for key in ["core", "core-source", "core-features", "core-layout", "rustc", "target", "panic", "tch", "libtorch"] {
            let differences = with(key, "other").differences();
            assert_eq!(differences.len(), 1, "{key}");
            let host = AbiHeader::current("", "");
            assert_eq!(differences[0].to_string(), format!("{key}: host `{}`, plugin `other`", host.value(key)));
        }
        assert!(with("+version", "9").differences().is_empty());
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_library_for_another_processor_is_refused() {
        let names = |cpu: &str| with("cpu", cpu).differences().into_iter().map(|difference| difference.to_string()).collect::<Vec<_>>();
        assert!(names("sse,sse2").is_empty());
        if !std::arch::is_x86_feature_detected!("avx512fp16") {
            assert_eq!(names("sse2,avx512fp16"), ["cpu: this machine lacks avx512fp16"]);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_header_or_none(mut noise: Vec<u8>, place: proptest::sample::Index, byte: u8) {
            let _ = AbiHeader::read(&noise);
            noise = bytes(&AbiHeader::current("mine", "1.2.3"));
            let place = place.index(noise.len());
            noise[place] = byte;
            if let Some(header) = AbiHeader::read(&noise) {
                let _ = header.differences();
            }
        }
    }
}
