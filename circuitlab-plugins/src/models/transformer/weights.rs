//! From tensors in files to the maps of a transformer.

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::description::Description;
use super::family::{Family, Layout, Place};
use super::shards::Shards;
use super::sites::Site;

/// The types that weights may be stored in.
const STORED: [&str; 4] = ["F32", "BF16", "F16", "F64"];

/// `x weight^T + bias`.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// # Shapes
    /// `x: [.., in]`, `weight: [out, in]`; gives `[.., out]`.
    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

/// Finds, checks and reads weights.
#[derive(Debug)]
pub(super) struct Loader<'a> {
    pub(super) family: &'a Family,
    pub(super) description: &'a Description,
    pub(super) shards: &'a Shards,
    pub(super) device: Device,
    pub(super) kind: Kind,
    /// Whether tensors are checked and left in their files.
    pub(super) without_weights: bool,
    /// Entries so far.
    pub(super) parameters: u64,
}

impl Loader<'_> {
    /// A module's weight, `[out, in]` for linear maps, and its bias where the description has one.
    pub(super) fn module(&mut self, site: Site) -> Result<Linear> {
        let shape = site.weight_shape(self.description);
        let weight = self.read(site, "weight", &shape)?;
        let bias = if site.has_bias(self.description) { Some(self.read(site, "bias", &shape[..1])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// Checks that the files hold nothing that the config says is not there, such as a bias or one more block: it would
    /// be left out of every forward pass. Other tensors are of no concern: old files hold masks and rotary frequencies.
    pub(super) fn check_for_more(&self) -> Result<()> {
        let layers = self.description.layers;
        for site in Site::OUTER.into_iter().chain((0..layers).flat_map(Site::of_block)) {
            // The file of a tied model may hold the same tensor under both names.
            let weight = !site.exists(self.description) && site != Site::Unembedding;
            let bias = !(site.exists(self.description) && site.has_bias(self.description));
            self.check_absent(site, "weight", weight)?;
            self.check_absent(site, "bias", bias)?;
        }
        [Site::Norm1(layers), Site::Query(layers)].into_iter().try_for_each(|site| self.check_absent(site, "weight", true))
    }

    fn check_absent(&self, site: Site, term: &str, absent: bool) -> Result<()> {
        let Some(place) = (self.family.place)(site).filter(|_| absent) else { return Ok(()) };
        let name = self.name(site, &place, term);
        if !self.shards.contains(&name) {
            return Ok(());
        }
        let file = self.shards.holding(&name)?;
        Err(Error::format(
            file.path(),
            format!("it has a tensor `{name}`, which does not fit `config.json`: a model of that config has none"),
        ))
    }

    /// The name in the files, with the family's prefix unless only the bare name is there.
    fn name(&self, site: Site, place: &Place, term: &str) -> String {
        let bare = format!("{}.{term}", place.module);
        let prefix = if site == Site::Unembedding { "" } else { self.family.prefix };
        let prefixed = format!("{prefix}{bare}");
        if self.shards.contains(&bare) && !self.shards.contains(&prefixed) { bare } else { prefixed }
    }

    fn read(&mut self, site: Site, term: &str, shape: &[i64]) -> Result<Tensor> {
        let place =
            (self.family.place)(site).ok_or_else(|| Error::Invalid(format!("family `{}` has no place for {site:?}", self.family.name)))?;
        let name = self.name(site, &place, term);
        let file = self.shards.holding(&name)?;
        check(file, &name, &self.stored_shape(&place.layout, shape))?;
        self.parameters += shape.iter().product::<i64>() as u64;
        if self.without_weights {
            return Ok(Tensor::f_empty([0], (self.kind, self.device))?);
        }
        let stored = file.tensor(&name, Some(self.kind), self.device)?;
        self.taken_out(stored, site, &place.layout, shape)
    }

    /// The shape in the file of a tensor that has this shape in the model.
    fn stored_shape(&self, layout: &Layout, shape: &[i64]) -> Vec<i64> {
        let wide = |parts: usize| shape[0] * parts as i64;
        match (layout, shape) {
            (Layout::Transposed { parts, .. }, [_, inner]) => vec![*inner, wide(*parts)],
            (Layout::Transposed { parts, .. } | Layout::ByHead { parts, .. }, _) => [&[wide(*parts)], &shape[1..]].concat(),
            (Layout::Stacked(sites), _) => [&[self.rows_of(sites)], &shape[1..]].concat(),
            _ => shape.to_vec(),
        }
    }

    /// Rows of several maps together.
    fn rows_of(&self, sites: &[Site]) -> i64 {
        sites.iter().map(|site| site.weight_shape(self.description)[0]).sum()
    }

    /// One of the maps that a stored tensor holds. Copied: a view would keep all of them in memory.
    fn taken_out(&self, stored: Tensor, site: Site, layout: &Layout, shape: &[i64]) -> Result<Tensor> {
        let part = match layout {
            Layout::Transposed { part, .. } => {
                let part = stored.f_narrow(-1, *part as i64 * shape[0], shape[0])?;
                if shape.len() == 2 { part.f_transpose(0, 1)? } else { part }
            }
            Layout::ByHead { part, parts } => {
                let by_head = [&[-1, *parts as i64, self.description.d_head as i64], &shape[1..]].concat();
                stored.f_view(by_head.as_slice())?.f_select(1, *part as i64)?.f_reshape(shape)?
            }
            Layout::Stacked(sites) => {
                let before: Vec<Site> = sites.iter().copied().take_while(|other| *other != site).collect();
                stored.f_narrow(0, self.rows_of(&before), shape[0])?
            }
            Layout::Plain => return Ok(stored),
        };
        Ok(if part.is_contiguous() { part.copy() } else { part.f_contiguous()? })
    }
}

fn check(file: &TensorFile, name: &str, shape: &[i64]) -> Result<()> {
    let (got, _) = file.raw(name)?;
    if got != shape {
        return Err(Error::format(file.path(), format!("tensor `{name}` has shape {got:?}, and `config.json` asks for {shape:?}")));
    }
    let dtype = file.dtype(name)?;
    if !STORED.contains(&dtype.as_str()) {
        return Err(Error::format(file.path(), format!("tensor `{name}` is stored as {dtype}; expected one of {}", STORED.join(", "))));
    }
    Ok(())
}
