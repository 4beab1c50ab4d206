//! Moments in 8 bits: tensors around the loops of `circuitlab-kernels`.

use circuitlab_core::tensors::TensorFile;
use circuitlab_kernels::adam::{Numbers, SHARED, Step, step_in_8_bits};
use circuitlab_kernels::slices::{numbers, numbers_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};

use super::kept::read_like;
use crate::Result;

/// Both moments of a parameter: all numbers in a row, and a scale for every 256 of them.
#[derive(Debug)]
pub(super) struct Eight {
    first: Tensor,
    first_scales: Tensor,
    second: Tensor,
    second_scales: Tensor,
}

fn scales_name(name: &str) -> String {
    format!("{name}.scales")
}

impl Eight {
    /// Moments of zero.
    pub(super) fn new(count: usize) -> Self {
        let zeros = |count: usize, kind| Tensor::zeros([count as i64], (kind, Device::Cpu));
        let scales = || zeros(count.div_ceil(SHARED), Kind::Float);
        Self { first: zeros(count, Kind::Int8), first_scales: scales(), second: zeros(count, Kind::Uint8), second_scales: scales() }
    }

    pub(super) fn read(&mut self, name: &str, [first, second]: [&TensorFile; 2]) -> Result<()> {
        read_like(&mut self.first, name, first, None)?;
        read_like(&mut self.first_scales, &scales_name(name), first, None)?;
        read_like(&mut self.second, name, second, None)?;
        read_like(&mut self.second_scales, &scales_name(name), second, None)
    }

    pub(super) fn saved(&self, name: &str) -> [Vec<(String, Tensor)>; 2] {
        [(&self.first, &self.first_scales), (&self.second, &self.second_scales)]
            .map(|(moment, scales)| vec![(name.to_owned(), moment.shallow_clone()), (scales_name(name), scales.shallow_clone())])
    }

    pub(super) fn step(&mut self, by: &Step, t: u64, value: &mut Tensor, rounded: Option<&mut [bf16]>, gradient: &Tensor) -> Result<()> {
        let numbers = Numbers {
            value: numbers_mut(value)?,
            rounded,
            first: numbers_mut(&mut self.first)?,
            first_scales: numbers_mut(&mut self.first_scales)?,
            second: numbers_mut(&mut self.second)?,
            second_scales: numbers_mut(&mut self.second_scales)?,
            gradient: numbers(gradient)?,
        };
        Ok(step_in_8_bits(by, t, numbers)?)
    }
}
