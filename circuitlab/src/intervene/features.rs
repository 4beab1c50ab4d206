//! Features that came out of a pass.

use tch::{Device, Kind, Tensor};

use super::Site;
use crate::Result;

/// Features at positions, in the order of layer, position and feature, each with a number: an activation or a pre-activation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Features {
    /// Which.
    pub sites: Vec<Site>,
    /// The number of each.
    pub values: Vec<f32>,
}

impl Features {
    /// Adds those of a layer that are not zero.
    ///
    /// # Shapes
    /// `acts: [position, d_features]`, whose first row has the position `first`.
    pub(super) fn push_active(&mut self, layer: usize, first: usize, acts: &Tensor) -> Result<()> {
        let places = acts.f_nonzero()?;
        let (positions, features) = (places.f_select(1, 0)?, places.f_select(1, 1)?);
        let values = acts.f_index(&[Some(&positions), Some(&features)])?;
        self.values.extend(floats(&values)?);
        let [positions, features] = [integers(&positions)?, integers(&features)?];
        let site = |(position, feature): (&i64, &i64)| Site { layer, position: first + *position as usize, feature: *feature as usize };
        self.sites.extend(positions.iter().zip(&features).map(site));
        Ok(())
    }

    /// Adds numbers of given features of a layer.
    ///
    /// # Shapes
    /// `values: [position, d_features]`, whose first row has the position 0.
    pub(super) fn push_at(&mut self, sites: &[Site], values: &Tensor) -> Result<()> {
        let index = |of: fn(&Site) -> usize| {
            let list: Vec<i64> = sites.iter().map(|site| of(site) as i64).collect();
            Tensor::from_slice(&list).f_to_device(values.device())
        };
        let picked = values.f_index(&[Some(&index(|site| site.position)?), Some(&index(|site| site.feature)?)])?;
        self.values.extend(floats(&picked)?);
        self.sites.extend_from_slice(sites);
        Ok(())
    }

    /// Those of several runs of different positions, in order.
    pub(super) fn joined(parts: Vec<Self>) -> Self {
        let mut all: Vec<(Site, f32)> = parts.into_iter().flat_map(|part| part.sites.into_iter().zip(part.values)).collect();
        all.sort_by_key(|(site, _)| *site);
        let (sites, values) = all.into_iter().unzip();
        Self { sites, values }
    }

    /// Those of a layer.
    pub(super) fn of_layer(&self, layer: usize) -> &[Site] {
        let first = self.sites.partition_point(|site| site.layer < layer);
        let end = self.sites.partition_point(|site| site.layer <= layer);
        &self.sites[first..end]
    }

    /// The number of a feature at a position, where it is there.
    pub fn value(&self, site: Site) -> Option<f32> {
        self.sites.binary_search(&site).ok().map(|place| self.values[place])
    }

    /// As two tensors on the CPU.
    ///
    /// # Shapes
    /// `[n, 3]`, int32, of layer, position and feature, and `[n]`, f32.
    ///
    /// # Errors
    /// libtorch's.
    pub fn tensors(&self) -> Result<(Tensor, Tensor)> {
        let flat: Vec<i32> = self.sites.iter().flat_map(|site| [site.layer, site.position, site.feature].map(|at| at as i32)).collect();
        Ok((Tensor::from_slice(&flat).f_view([-1, 3])?, Tensor::from_slice(&self.values)))
    }
}

fn floats(values: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::try_from(values.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)?)
}

fn integers(values: &Tensor) -> Result<Vec<i64>> {
    Ok(Vec::try_from(values.f_to_device(Device::Cpu)?)?)
}
