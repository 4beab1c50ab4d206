//! Telling one set of weights from another.

use std::fmt::Write;

use circuitlab_core::{Error, Result};
use sha2::{Digest, Sha256};

use super::description::Description;
use super::shards::Shards;

/// SHA-256, in hex, of a model's description and of a checksum of each of its tensors.
///
/// Hashed are, in this order: the line `circuitlab model 2`; the JSON of the [`Description`]; then for every tensor of the
/// files, sorted by name: its name, the name of its stored type (`F32`, `BF16`, ..), its number of axes, its sizes, and the CRC-32C
/// of its bytes as stored. Texts are preceded by their length in bytes; lengths, counts and sizes are 64-bit little endian, the
/// checksum 32-bit.
///
/// So any edit of a weight changes it; the folder's name, its shards and the type that is computed in do not. It costs one pass over
/// the files, which are read for loading anyway, and no memory to speak of.
pub(super) fn fingerprint(description: &Description, shards: &Shards) -> Result<String> {
    let json = serde_json::to_vec(description).map_err(|error| Error::Invalid(format!("model description: {error}")))?;
    let mut hash = Sha256::new();
    hash.update(b"circuitlab model 2\n");
    add(&mut hash, &json);
    for name in shards.names() {
        let file = shards.holding(name)?;
        let (shape, data) = file.raw(name)?;
        add(&mut hash, name.as_bytes());
        add(&mut hash, file.dtype(name)?.as_bytes());
        hash.update((shape.len() as u64).to_le_bytes());
        for size in shape {
            hash.update(size.to_le_bytes());
        }
        hash.update(crc32c::crc32c(data).to_le_bytes());
        file.release(data);
    }
    let mut hex = String::new();
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Ok(hex)
}

/// The length goes first, so that no two lists of texts hash alike.
fn add(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
