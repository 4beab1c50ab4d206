//! What a model family's page says.

use circuitlab_core::Result;

use super::description::Description;
use super::sites::Site;
use crate::models::hugging_face::ConfigFile;

/// A model family: how its `config.json` is read and what its tensors are called.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// The registered name, which is also the config's `model_type`.
    pub name: &'static str,
    /// What some files put before the names that [`place`](Self::place) gives, and others leave out. The unembedding lies
    /// outside of the prefixed module and never has it.
    pub prefix: &'static str,
    /// Reads the config.
    pub describe: fn(&ConfigFile) -> Result<Description>,
    /// Where a module's tensors lie, for the modules that the family can have.
    pub place: fn(Site) -> Option<Place>,
}

/// Where a module's `weight` and `bias` lie in a file, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The module's name: its tensors are `{module}.weight` and `{module}.bias`.
    pub module: String,
    /// How the weight is laid out.
    pub layout: Layout,
}

/// How a linear map's weight is laid out in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// `[out, in]`.
    Plain,
    /// `[in, parts * out]`: the map is number `part` of `parts` equal ones that stand side by side.
    Transposed {
        /// Which, from 0.
        part: usize,
        /// Of how many.
        parts: usize,
    },
    /// `[heads * parts * d_head, in]`: of every head in turn, `parts` maps follow one another, and this is number `part`.
    ByHead {
        /// Which, from 0.
        part: usize,
        /// Of how many.
        parts: usize,
    },
    /// `[out + .., in]`: the maps of these sites are stacked in this order, and this is one of them.
    Stacked(Vec<Site>),
}

impl Place {
    /// A module in the usual layout, `[out, in]`.
    pub fn plain(module: impl Into<String>) -> Self {
        Self { module: module.into(), layout: Layout::Plain }
    }

    /// A module whose weight is transposed.
    pub fn transposed(module: impl Into<String>) -> Self {
        Self { module: module.into(), layout: Layout::Transposed { part: 0, parts: 1 } }
    }
}
