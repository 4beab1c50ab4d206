//! Moments in 8 bits: tensors around the loops of `circuitlab-kernels`.

use circuitlab_kernels::adam::{Numbers, SHARED, Step, step_in_8_bits};
use circuitlab_kernels::slices::{numbers, numbers_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Both moments of rows of a parameter, in its shape, and for each row a scale for every 256 numbers.
#[derive(Debug)]
pub(super) struct Eight {
    width: usize,
    first: Tensor,
    first_scales: Tensor,
    second: Tensor,
    second_scales: Tensor,
}

impl Eight {
    /// Moments of zero, of a parameter of this shape.
    pub(super) fn new(shape: &[i64]) -> Self {
        let width = shape.iter().skip(1).product::<i64>();
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        let scales = || zeros(&[shape.first().copied().unwrap_or(1), (width as usize).div_ceil(SHARED) as i64], Kind::Float);
        Self {
            width: width as usize,
            first: zeros(shape, Kind::Int8),
            first_scales: scales(),
            second: zeros(shape, Kind::Uint8),
            second_scales: scales(),
        }
    }

    /// What it consists of, by the names that checkpoints add to the parameter's.
    pub(super) fn tensors(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let Self { first, first_scales, second, second_scales, .. } = self;
        vec![("first", first), ("first.scales", first_scales), ("second", second), ("second.scales", second_scales)]
    }

    /// `first_row` is the number of the first of these rows in the whole parameter.
    pub(super) fn step(
        &mut self,
        by: &Step,
        t: u64,
        first_row: u64,
        value: &mut Tensor,
        rounded: Option<&mut [bf16]>,
        gradient: &Tensor,
    ) -> Result<()> {
        let numbers = Numbers {
            width: self.width,
            place: first_row * self.width as u64,
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
