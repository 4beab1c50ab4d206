//! `manifest.json` of a part.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::JobShare;
use super::identity::Identity;
use super::place::{Condition, Place, Version};
use super::statistics::Statistics;
use crate::text::sha256;
use crate::{Error, Result};

/// The version of the cache's files.
pub(super) const SCHEMA: u32 = 2;
const FILE: &str = "manifest.json";

/// What a part's folder holds. It is replaced after every chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format.
    pub schema: u32,
    /// What all parts share.
    pub identity: Identity,
    /// The number of the job that writes this part, from 1.
    pub job: usize,
    /// How many chunks the part has when it is whole.
    pub planned_chunks: usize,
    /// How many rows the part has when it is whole, masked ones included.
    pub planned_rows: u64,
    /// Rows of the chunks below that were left out because their norms stand out.
    pub masked_rows: u64,
    /// Rows of the chunks below.
    pub rows: u64,
    /// The chunks that are there, in order.
    pub chunks: Vec<ChunkEntry>,
    /// Statistics of the inputs of each layer, over the chunks above: `[layer]`.
    pub inputs: Vec<Statistics>,
    /// Statistics of the outputs of each layer: `[layer]`.
    pub targets: Vec<Statistics>,
}

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkEntry {
    /// Its file in the part's folder.
    pub file: String,
    /// Its rows.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of the file.
    pub sha256: String,
}

impl Manifest {
    /// A part without chunks.
    pub(super) fn new(identity: Identity, share: JobShare, planned_chunks: usize, planned_rows: u64) -> Self {
        let none = vec![Statistics::default(); identity.layers];
        let (inputs, targets) = (none.clone(), none);
        Self {
            schema: SCHEMA,
            identity,
            job: share.job(),
            planned_chunks,
            planned_rows,
            masked_rows: 0,
            rows: 0,
            chunks: Vec::new(),
            inputs,
            targets,
        }
    }

    /// Where a part has it, for messages.
    pub(super) fn path(part: &Place) -> PathBuf {
        part.path().join(FILE)
    }

    /// Whether a part's folder holds one.
    pub(super) fn is_in(part: &Place) -> Result<bool> {
        Ok(part.length(FILE)?.is_some())
    }

    /// Reads the manifest of a part, by the part's path or URL.
    ///
    /// # Errors
    /// A file that is missing, of another version, or damaged.
    pub fn read(part: &Path) -> Result<Self> {
        Ok(Self::load(&Place::new(part)?)?.0)
    }

    /// Reads a part's manifest and checks that it is whole in itself. Gives its version too, which tells whether another process
    /// replaced it.
    ///
    /// # Errors
    /// A file that is missing, of another version, or damaged.
    pub(super) fn load(part: &Place) -> Result<(Self, Version)> {
        let path = Self::path(part);
        let wrong = |message: String| Error::from(circuitlab_core::Error::format(&path, message));
        let stored = part.read(FILE)?;
        let text = str::from_utf8(&stored.bytes).map_err(|_| wrong("it is damaged: no text".to_owned()))?;
        let sealed = sealed(text);
        let value: Result<serde_json::Value, _> = serde_json::from_str(text);
        let schema = value.as_ref().ok().and_then(|value| value.get("schema")?.as_u64());
        match (sealed, schema) {
            (Some(true), Some(schema)) if schema == u64::from(SCHEMA) => {}
            (Some(true) | None, Some(schema)) if schema != u64::from(SCHEMA) => {
                return Err(wrong(format!(
                    "expected the cache format version {SCHEMA}, got {schema}; make the cache again with this program"
                )));
            }
            _ => return Err(wrong("it is damaged: its checksum is wrong".to_owned())),
        }
        let mut value = value.map_err(|error| wrong(format!("not valid JSON: {error}")))?;
        value.as_object_mut().map(|fields| fields.remove(SEAL));
        let manifest: Self = circuitlab_core::config::read(&format!("`{}`", path.display()), value)?;
        manifest.inconsistency().map_or(Ok((manifest, stored.version)), |message| Err(wrong(message)))
    }

    /// Puts it in its place, in one step.
    ///
    /// # Errors
    /// What the place returns, another process's manifest included.
    pub(super) fn write(&self, part: &Place, condition: Condition<'_>) -> Result<Version> {
        let text = serde_json::to_string(self).map_err(|error| Error::Invalid(format!("the manifest is no JSON: {error}")))?;
        part.write(FILE, &[seal(&text).as_bytes()], condition)
    }

    /// Whether all planned chunks are there.
    pub fn is_complete(&self) -> bool {
        self.chunks.len() == self.planned_chunks
    }

    /// Bytes of its chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes).sum()
    }

    fn inconsistency(&self) -> Option<String> {
        let Identity { layers, d_model, jobs, .. } = self.identity;
        if layers == 0 || d_model == 0 {
            return Some("a model has at least one layer and one dimension".to_owned());
        }
        if JobShare::new(self.job, jobs).is_err() {
            return Some(format!("there is no job {} of {jobs}", self.job));
        }
        if self.chunks.len() > self.planned_chunks {
            return Some(format!("it has {} chunks of {}", self.chunks.len(), self.planned_chunks));
        }
        if let Some(place) = (0..self.chunks.len()).find(|place| self.chunks[*place].file != chunk_file(*place)) {
            return Some(format!("chunk {place} is `{}`, expected `{}`", self.chunks[place].file, chunk_file(place)));
        }
        let rows = self.chunks.iter().try_fold(0_u64, |sum, chunk| sum.checked_add(chunk.rows));
        if rows != Some(self.rows) {
            return Some(format!("its chunks do not add up to its {} rows", self.rows));
        }
        if self.is_complete() && self.rows.checked_add(self.masked_rows) != Some(self.planned_rows) {
            return Some(format!(
                "its chunks have {} rows and {} masked ones, expected {}",
                self.rows, self.masked_rows, self.planned_rows
            ));
        }
        let fits = |statistics: &[Statistics]| {
            let sound = |layer: &Statistics| {
                let figures = [layer.mean_norm, layer.squared_deviation];
                // Rows are 32-bit floats: a smaller mean norm than theirs was not measured.
                figures.iter().all(|figure| figure.is_finite() && *figure >= 0.0)
                    && (layer.mean_norm == 0.0 || layer.mean_norm >= f64::from(f32::MIN_POSITIVE))
                    && layer.mean.iter().all(|mean| mean.is_finite())
            };
            let whole = |layer: &Statistics| {
                layer.rows == self.rows && layer.mean.len() == if self.rows == 0 { 0 } else { d_model } && sound(layer)
            };
            statistics.len() == layers && statistics.iter().all(whole)
        };
        (!fits(&self.inputs) || !fits(&self.targets))
            .then(|| format!("its statistics are not those of {layers} layers of {} rows", self.rows))
    }
}

/// The name of a chunk's file.
pub(super) fn chunk_file(index: usize) -> String {
    format!("chunk-{index:06}.clab")
}

/// The key of a manifest's own checksum, which comes last.
const SEAL: &str = "checksum";

/// A manifest's text with the SHA-256 of all of it before the checksum.
fn seal(text: &str) -> String {
    let open = text.strip_suffix('}').unwrap_or(text);
    format!("{open},\"{SEAL}\":\"{}\"}}\n", sha256(open.as_bytes()))
}

/// Whether a text is as [`seal`] left it; nothing where it has no checksum.
fn sealed(text: &str) -> Option<bool> {
    let (open, end) = text.rsplit_once(&format!(",\"{SEAL}\":\""))?;
    Some(end.strip_suffix("\"}\n").is_some_and(|sum| sum == sha256(open.as_bytes())))
}

/// The parts of a cache, in order.
///
/// # Errors
/// A folder that is not there, holds no part, or holds parts of different numbers of jobs.
pub(super) fn parts(cache: &Place) -> Result<Vec<(JobShare, Place)>> {
    let names = cache.entries()?.folders;
    let mut parts: Vec<(JobShare, Place)> =
        names.iter().filter_map(|name| JobShare::of_folder(name).map(|share| (share, cache.join(name)))).collect();
    parts.sort_by_key(|(share, _)| (share.jobs(), share.job()));
    let wrong = |message: String| Err(circuitlab_core::Error::format(cache.path(), message).into());
    match (parts.first(), parts.last()) {
        (Some((first, _)), Some((last, _))) if first.jobs() != last.jobs() => {
            wrong(format!("it holds `{}` and `{}`, which are parts of different caches", first.folder(), last.folder()))
        }
        (Some(_), _) => Ok(parts),
        _ => wrong("it is no cache: expected folders such as `part-001-of-001`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_is_json_and_shows_every_change() {
        let text = seal(r#"{"schema":2,"rows":5}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["rows"], 5);
        assert_eq!((sealed(&text), sealed(r#"{"schema":1}"#)), (Some(true), None));
        for place in 0..text.len() {
            let mut flipped = text.clone().into_bytes();
            flipped[place] ^= 1;
            let flipped = String::from_utf8(flipped).expect("still ASCII");
            assert_ne!(sealed(&flipped), Some(true), "byte {place}");
        }
    }
}
