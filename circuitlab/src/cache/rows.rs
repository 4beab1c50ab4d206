//! What a run trains on.

use std::path::Path;
use std::sync::Arc;

use circuitlab_core::{Error as CoreError, Kind, Registry};

use super::chunk::{Side, block_of};
use super::identity::Identity;
use super::made::Made;
use super::open::{Cache, Normalisation};
use super::sampler::RowPlace;
use crate::{Error, Result};

/// Rows of a cache, or rows that a model makes as they are needed. Both come in chunks.
#[derive(Debug, Clone)]
pub enum Rows {
    /// A cache.
    Cached(Arc<Cache>),
    /// A model and a text.
    Made(Arc<Made>),
}

impl Rows {
    /// Opens a cache.
    ///
    /// # Errors
    /// As [`Cache::open`].
    pub fn open(cache: &Path, registry: &Registry) -> Result<Self> {
        Cache::open(cache, registry).map(|cache| Self::Cached(Arc::new(cache)))
    }

    /// What the rows are and how they come about.
    pub fn identity(&self) -> &Identity {
        match self {
            Self::Cached(cache) => cache.identity(),
            Self::Made(made) => made.identity(),
        }
    }

    /// Rows of an epoch.
    pub fn count(&self) -> u64 {
        match self {
            Self::Cached(cache) => cache.rows(),
            Self::Made(made) => made.rows(),
        }
    }

    /// Rows of each chunk.
    pub fn chunk_rows(&self) -> Vec<u64> {
        match self {
            Self::Cached(cache) => cache.chunk_rows(),
            Self::Made(made) => made.chunk_rows().to_vec(),
        }
    }

    /// What rows are multiplied by.
    pub fn normalisation(&self) -> Normalisation {
        match self {
            Self::Cached(cache) => cache.normalisation(),
            Self::Made(made) => made.normalisation().clone(),
        }
    }

    /// Tells these rows from others, wherever they lie.
    pub fn digest(&self) -> String {
        match self {
            Self::Cached(cache) => cache.digest(),
            Self::Made(made) => made.digest(),
        }
    }

    /// The error of a row that is not what it should be, by the file or the model that it is from.
    pub fn at_fault(&self, place: RowPlace, layer: usize, side: Side, fault: &str) -> Error {
        match self {
            Self::Cached(cache) => match cache.chunk(place.chunk) {
                Ok(chunk) => chunk.of_block(block_of(layer, side), &CoreError::Invalid(fault.to_owned())),
                Err(error) => error,
            },
            Self::Made(made) => {
                let side = if side == Side::Inputs { "inputs" } else { "outputs" };
                let (chunk, model) = (place.chunk, &made.identity().model);
                Error::Invalid(format!("chunk {chunk} of those that the model `{model}` makes: {side} of layer {layer}: {fault}"))
            }
        }
    }

    /// The plugins that they are read with.
    pub fn plugin_names(&self) -> impl Iterator<Item = (Kind, &str)> {
        let cache = match self {
            Self::Cached(cache) => Some(cache.plugin_names()),
            Self::Made(_) => None,
        };
        cache.into_iter().flatten()
    }

    /// About how much memory a window of so many chunks takes.
    pub fn window_bytes(&self, chunks: usize) -> u64 {
        match self {
            Self::Cached(cache) => cache.window_bytes(chunks),
            Self::Made(made) => made.window_bytes(chunks),
        }
    }
}

impl From<Arc<Cache>> for Rows {
    fn from(cache: Arc<Cache>) -> Self {
        Self::Cached(cache)
    }
}
