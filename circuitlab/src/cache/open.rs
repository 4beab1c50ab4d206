//! All parts of a cache as one.

use std::path::{Path, PathBuf};

use circuitlab_core::{BlockShape, CodecChain, Kind, Registry};
use serde::{Deserialize, Serialize};

use super::chunk::ChunkReader;
use super::identity::Identity;
use super::manifest::{self, ChunkEntry, Manifest};
use super::place::Place;
use super::statistics::Statistics;
use crate::text::sha256;
use crate::{Error, Result};

/// A whole cache, open for reading.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    identity: Identity,
    codec: CodecChain,
    chunks: Vec<(Place, ChunkEntry)>,
    rows: u64,
    inputs: Vec<Statistics>,
    targets: Vec<Statistics>,
}

/// What raw rows of each layer are multiplied by, so that their mean L2 norm is `sqrt(d_model)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Of inputs: `[layer]`.
    pub input_scales: Vec<f64>,
    /// Of outputs: `[layer]`.
    pub target_scales: Vec<f64>,
}

impl Normalisation {
    /// The factors `sqrt(d_model) / mean norm` of each layer; 1 for a layer of zeros.
    pub fn of(d_model: usize, inputs: &[Statistics], targets: &[Statistics]) -> Self {
        let root = (d_model as f64).sqrt();
        let scales =
            |layers: &[Statistics]| layers.iter().map(|layer| if layer.mean_norm > 0.0 { root / layer.mean_norm } else { 1.0 }).collect();
        Self { input_scales: scales(inputs), target_scales: scales(targets) }
    }
}

impl Cache {
    /// Opens a cache and joins its parts; no chunk is read.
    ///
    /// # Errors
    /// A folder that is no cache, parts that are missing, unfinished or of different caches, and an unknown codec.
    pub fn open(folder: &Path, registry: &Registry) -> Result<Self> {
        let parts = manifest::parts(&Place::new(folder)?)?;
        let jobs = parts.first().map_or(0, |(share, _)| share.jobs());
        let missing: Vec<String> =
            (1..=jobs).filter(|job| parts.iter().all(|(share, _)| share.job() != *job)).map(|job| format!("`{job}/{jobs}`")).collect();
        if !missing.is_empty() {
            let message = format!("{} of {jobs} parts are missing; run the jobs {}", missing.len(), missing.join(", "));
            return Err(circuitlab_core::Error::format(folder, message).into());
        }
        let manifests = parts.iter().map(|(_, part)| Manifest::load(part).map(|(manifest, _)| manifest)).collect::<Result<Vec<_>>>()?;
        for ((share, part), manifest) in parts.iter().zip(&manifests) {
            if (manifest.job, manifest.identity.jobs) != (share.job(), share.jobs()) {
                let message = format!("it is part {} of {}, not what its name says", manifest.job, manifest.identity.jobs);
                return Err(circuitlab_core::Error::format(part.path(), message).into());
            }
            if !manifest.is_complete() {
                let (done, planned) = (manifest.chunks.len(), manifest.planned_chunks);
                let message = format!("{done} of {planned} chunks are written; run the job {share} again with `--resume`");
                return Err(circuitlab_core::Error::format(part.path(), message).into());
            }
            manifest.identity.agree(
                &format!("part `{}` is of another cache than `{}`", part.path().display(), parts[0].1.path().display()),
                &manifests[0].identity,
            )?;
        }
        Self::join(folder, registry, &parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>(), manifests)
    }

    fn join(folder: &Path, registry: &Registry, parts: &[Place], manifests: Vec<Manifest>) -> Result<Self> {
        let Some(identity) = manifests.first().map(|manifest| manifest.identity.clone()) else {
            return Err(Error::Invalid(format!("cache `{}` has no parts", folder.display())));
        };
        registry.require(&format!("cache `{}`", folder.display()), &identity.providers)?;
        let codec = CodecChain::build(registry, &identity.codec)?;
        let none = vec![Statistics::default(); identity.layers];
        let mut cache =
            Self { folder: folder.to_path_buf(), codec, chunks: Vec::new(), rows: 0, inputs: none.clone(), targets: none, identity };
        for (part, manifest) in parts.iter().zip(manifests) {
            cache.rows += manifest.rows;
            cache.inputs.iter_mut().zip(&manifest.inputs).for_each(|(all, new)| all.merge(new));
            cache.targets.iter_mut().zip(&manifest.targets).for_each(|(all, new)| all.merge(new));
            cache.chunks.extend(manifest.chunks.into_iter().map(|entry| (part.clone(), entry)));
        }
        Ok(cache)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it holds and how it came about.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Rows of all chunks.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows of each chunk.
    pub fn chunk_rows(&self) -> Vec<u64> {
        self.chunks.iter().map(|(_, entry)| entry.rows).collect()
    }

    /// Bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|(_, entry)| entry.bytes).sum()
    }

    /// How its rows were encoded.
    pub fn codec(&self) -> &CodecChain {
        &self.codec
    }

    /// About how much memory so many of its chunks take while rows are drawn from them.
    pub fn window_bytes(&self, chunks: usize) -> u64 {
        let rows = self.chunks.iter().map(|(_, entry)| entry.rows as usize).max().unwrap_or(0);
        let shape = BlockShape { rows, width: self.identity.d_model };
        let plain = shape.values().map_or(usize::MAX, |values| values * 4);
        let block = if self.codec.has_row_access() { self.codec.max_unpacked_bytes(shape).unwrap_or(plain) } else { plain };
        chunks.min(self.chunks.len()) as u64 * (2 * self.identity.layers as u64).saturating_mul(block as u64)
    }

    /// Statistics of the inputs of each layer: `[layer]`.
    pub fn inputs(&self) -> &[Statistics] {
        &self.inputs
    }

    /// Statistics of the outputs of each layer: `[layer]`.
    pub fn targets(&self) -> &[Statistics] {
        &self.targets
    }

    /// Tells this cache's rows from others', wherever it lies: a digest of what it holds and of every chunk.
    pub fn digest(&self) -> String {
        let mut all = self.identity.comparable().to_string();
        for (_, entry) in &self.chunks {
            all.push('\n');
            all.push_str(&entry.sha256);
        }
        sha256(all.as_bytes())
    }

    /// The plugins that its chunks are read with.
    pub fn plugin_names(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.codec.plugins()
    }

    /// Opens a chunk, for `chunk < chunk_rows().len()`.
    ///
    /// # Errors
    /// A chunk that is not there, or damaged.
    pub fn chunk(&self, chunk: usize) -> Result<ChunkReader<'_>> {
        let (part, entry) = self.chunks.get(chunk).ok_or_else(|| {
            Error::Invalid(format!("cache `{}` has no chunk {chunk}, it has {}", self.folder.display(), self.chunks.len()))
        })?;
        ChunkReader::open(part, entry, self.identity.layers, self.identity.d_model, &self.codec)
    }

    /// The factors of each layer.
    pub fn normalisation(&self) -> Normalisation {
        Normalisation::of(self.identity.d_model, &self.inputs, &self.targets)
    }
}
