//! Finds rows that are in a cache twice.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::chunk::ChunkFile;
use super::identity::Identity;
use super::manifest::ChunkEntry;
use super::place::Place;

/// Rows whose keys are in memory together: 512 MiB. A larger cache is gone through several times, each time for a share of the rows.
const KEYS: u64 = 64 << 20;
/// Duplicates that are told; where there are more, more of the same is no help.
const TOLD: usize = 16;

/// A chunk of some part.
pub(super) type Chunk<'a> = (&'a Place, &'a ChunkEntry);

/// A row that is in two places.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Duplicate {
    pub(super) document: u32,
    pub(super) position: u32,
    /// The files, the same one twice where both rows are in it.
    pub(super) files: [PathBuf; 2],
}

/// Rows of the same token of the same document. Chunks that cannot be read are left out; `verify` has named them.
pub(super) fn duplicates(chunks: &[Chunk<'_>], identity: &Identity) -> Vec<Duplicate> {
    let rows: u64 = chunks.iter().map(|(_, entry)| entry.rows).sum();
    let passes = rows.div_ceil(KEYS).max(1);
    let mut found = Vec::new();
    for pass in 0..passes {
        let mut keys: Vec<u64> = Vec::new();
        for chunk in chunks {
            keys.extend(keys_of(*chunk, identity).into_iter().filter(|key| share(*key, passes) == pass));
        }
        keys.sort_unstable();
        let mut twice: Vec<u64> = keys.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        twice.dedup();
        found.extend(twice);
        if found.len() >= TOLD {
            break;
        }
    }
    found.truncate(TOLD);
    places(chunks, identity, &found)
}

/// Where keys are found: a second look, since files are not kept with keys.
fn places(chunks: &[Chunk<'_>], identity: &Identity, twice: &[u64]) -> Vec<Duplicate> {
    let mut files: BTreeMap<u64, Vec<PathBuf>> = twice.iter().map(|key| (*key, Vec::new())).collect();
    if files.is_empty() {
        return Vec::new();
    }
    for chunk in chunks {
        for key in keys_of(*chunk, identity) {
            if let Some(files) = files.get_mut(&key) {
                files.push(chunk.0.path().join(&chunk.1.file));
            }
        }
    }
    let duplicate = |(key, files): (u64, Vec<PathBuf>)| {
        let mut files = files.into_iter();
        Some(Duplicate { document: (key >> 32) as u32, position: key as u32, files: [files.next()?, files.next()?] })
    };
    files.into_iter().filter_map(duplicate).collect()
}

/// Document and position of each row. Rows of BOS have the position of the token after them, and are left out.
fn keys_of((part, entry): Chunk<'_>, identity: &Identity) -> Vec<u64> {
    let index = ChunkFile::open(part, entry, identity.layers, identity.d_model).and_then(|chunk| chunk.index());
    let Ok(index) = index else { return Vec::new() };
    let rows = index.documents.iter().zip(&index.positions).zip(&index.tokens);
    rows.filter(|(_, token)| Some(**token) != identity.bos)
        .map(|((document, position), _)| u64::from(*document) << 32 | u64::from(*position))
        .collect()
}

/// The pass in which a key is looked at.
fn share(key: u64, passes: u64) -> u64 {
    // Neighbours go to different passes, so that all are about as large.
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_pass_and_passes_are_about_as_large() {
        let mut counts = [0; 7];
        (0..7000_u64).for_each(|key| counts[share(key << 20 | key, 7) as usize] += 1);
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
        assert_eq!(share(u64::MAX, 1), 0);
    }
}
