//! What Adam keeps of one parameter, and its step.

use circuitlab_core::{Error as CoreError, Precision};
use circuitlab_kernels::adam::{NEVER, Rows, Step, settle, step};
use circuitlab_kernels::real::Real;
use circuitlab_kernels::rows::squares_of_rows;
use circuitlab_kernels::slices::{numbers, numbers_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};

use super::eight::Eight;
use crate::Result;
use crate::train::config::MomentKind;

/// The state of one parameter.
#[derive(Debug)]
pub(super) struct Kept {
    /// The parameter itself, where what is computed with is a rounded copy.
    pub(super) master: Option<Tensor>,
    /// The number of the first row in the whole parameter, of which a rank has a part.
    pub(super) first_row: u64,
    moments: Moments,
}

#[derive(Debug)]
enum Moments {
    Full(Full),
    Eight(Eight),
}

/// Moments of at least 32 bits.
#[derive(Debug)]
struct Full {
    first: Tensor,
    second: Tensor,
    /// For each row how many steps it has missed, see [`Rows::missed`]; nothing where no row is passed over.
    missed: Vec<u32>,
}

impl Kept {
    /// Moments of zero.
    pub(super) fn new(value: &Tensor, moments: MomentKind) -> Self {
        let kind = Precision::Full.kind(value.kind());
        let zeros = || Tensor::zeros(value.size(), (kind, value.device()));
        let master = (kind != value.kind()).then(|| value.to_kind(kind));
        let rows = rows(value);
        // Vectors are few numbers, and what they do matters more than that of any one weight.
        let is_matrix = value.size().len() > 1 && value.device() == Device::Cpu && kind == Kind::Float;
        let moments = if moments == MomentKind::Int8 && is_matrix {
            Moments::Eight(Eight::new(&value.size()))
        } else {
            Moments::Full(Full { first: zeros(), second: zeros(), missed: vec![NEVER; rows] })
        };
        Self { master, first_row: 0, moments }
    }

    /// Reads saved moments in place of its own, each by the name that checkpoints add to the parameter's.
    ///
    /// # Errors
    /// What `saved` returns, and moments of another shape.
    pub(super) fn read(&mut self, mut saved: impl FnMut(&str, Kind) -> Result<Tensor>) -> Result<()> {
        for (name, tensor) in self.tensors() {
            let read = saved(name, tensor.kind())?;
            if read.size() != tensor.size() {
                let message = format!("moments `{name}`: expected shape {:?}, got {:?}", tensor.size(), read.size());
                return Err(CoreError::Invalid(message).into());
            }
            *tensor = read;
        }
        match &mut self.moments {
            Moments::Full(full) => full.note_begun(),
            Moments::Eight(_) => Ok(()),
        }
    }

    /// What a checkpoint holds of the moments, by the names that it adds to the parameter's; each has the parameter's rows. They share memory
    /// with what is stepped.
    ///
    /// # Errors
    /// A system that gives no threads.
    pub(super) fn saved(&mut self, beta2: f64) -> Result<Vec<(&'static str, Tensor)>> {
        if let Moments::Full(full) = &mut self.moments {
            full.settle(beta2)?;
        }
        Ok(self.tensors().into_iter().map(|(name, tensor)| (name, tensor.shallow_clone())).collect())
    }

    fn tensors(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match &mut self.moments {
            Moments::Full(Full { first, second, .. }) => vec![("first", first), ("second", second)],
            Moments::Eight(eight) => eight.tensors(),
        }
    }

    /// Steps the parameter along its gradient; `t` is the number of the step. The sums of squares of its rows are left in `squares`
    /// where the loops over rows do it.
    ///
    /// # Errors
    /// A gradient of another shape, and a system that gives no threads.
    pub(super) fn step(&mut self, by: &Step, t: u64, value: &mut Tensor, squares: &mut Option<Vec<f64>>, gradient: &Tensor) -> Result<()> {
        let before = squares.take();
        let kind = Precision::Full.kind(value.kind());
        let gradient = gradient.f_to_kind(kind).and_then(|gradient| gradient.f_contiguous()).map_err(CoreError::from)?;
        match (&mut self.moments, value.device(), kind) {
            (Moments::Eight(eight), ..) => {
                let (value, rounded) = split(value, &mut self.master)?;
                eight.step(by, t, self.first_row, value, rounded, &gradient)
            }
            (Moments::Full(full), Device::Cpu, Kind::Float) => {
                *squares = full.step_rows::<f32>(by, value, &mut self.master, before, &gradient)?;
                Ok(())
            }
            (Moments::Full(full), Device::Cpu, Kind::Double) => {
                *squares = full.step_rows::<f64>(by, value, &mut self.master, before, &gradient)?;
                Ok(())
            }
            (Moments::Full(full), ..) => {
                full.step_by_libtorch(by, value, &mut self.master, &gradient * by.scale);
                Ok(())
            }
        }
    }
}

/// What is stepped, and the copy of 16 bits that follows it.
fn split<'a>(value: &'a mut Tensor, master: &'a mut Option<Tensor>) -> Result<(&'a mut Tensor, Option<&'a mut [bf16]>)> {
    Ok(match master {
        Some(master) => (master, Some(numbers_mut::<bf16>(value)?)),
        None => (value, None),
    })
}

impl Full {
    /// Finds which rows have been stepped, after moments were read.
    fn note_begun(&mut self) -> Result<()> {
        if !self.missed.is_empty() {
            let begun = self.first.ne(0.0).logical_or(&self.second.ne(0.0)).flatten(1, -1).any_dim(1, false);
            let begun = Vec::<bool>::try_from(begun).map_err(CoreError::from)?;
            self.missed = begun.into_iter().map(|begun| if begun { 0 } else { NEVER }).collect();
        }
        Ok(())
    }

    fn settle(&mut self, beta2: f64) -> Result<()> {
        if !self.missed.iter().any(|missed| !matches!(*missed, 0 | NEVER)) {
            return Ok(());
        }
        let width = self.first.numel() / self.missed.len();
        match self.first.kind() {
            Kind::Double => settle::<f64>(beta2, width, numbers_mut(&mut self.first)?, numbers_mut(&mut self.second)?, &mut self.missed)?,
            _ => settle::<f32>(beta2, width, numbers_mut(&mut self.first)?, numbers_mut(&mut self.second)?, &mut self.missed)?,
        }
        Ok(())
    }

    /// Gives the sums of squares of the rows, of which those `before` the step may be known.
    fn step_rows<T: Real>(
        &mut self,
        by: &Step,
        value: &mut Tensor,
        master: &mut Option<Tensor>,
        before: Option<Vec<f64>>,
        gradient: &Tensor,
    ) -> Result<Option<Vec<f64>>> {
        let defers = !self.missed.is_empty();
        let (value, rounded) = split(value, master)?;
        let width = if defers { value.numel() / self.missed.len() } else { 1 };
        let value = numbers_mut::<T>(value)?;
        // Those of the rounded numbers are not these.
        let mut squares = match before {
            _ if width <= 1 || rounded.is_some() => None,
            Some(squares) => Some(squares),
            None => Some(squares_of_rows::<T, T>(value, width)?),
        };
        step(
            by,
            Rows {
                width,
                value,
                rounded,
                first: numbers_mut(&mut self.first)?,
                second: numbers_mut(&mut self.second)?,
                gradient: numbers(gradient)?,
                missed: defers.then_some(&mut self.missed),
                squares: squares.as_deref_mut(),
            },
        )?;
        Ok(squares)
    }

    fn step_by_libtorch(&mut self, by: &Step, value: &mut Tensor, master: &mut Option<Tensor>, gradient: Tensor) {
        let Self { first, second, .. } = self;
        let _ = first.lerp_(&gradient, 1.0 - by.beta1);
        let _ = second.g_mul_scalar_(by.beta2).addcmul_(&(&gradient * (1.0 - by.beta2)), &gradient);
        drop(gradient);
        let mut root = second.sqrt();
        let _ = root.g_div_scalar_(by.root).g_add_scalar_(by.epsilon).g_mul_scalar_(-1.0 / by.rate);
        let _ = master.as_mut().unwrap_or(value).addcdiv_(first, &root);
        if let Some(master) = master {
            value.copy_(master);
        }
    }
}

/// How many rows of a parameter may be passed over by themselves.
fn rows(value: &Tensor) -> usize {
    match value.size()[..] {
        [rows, _, ..] if value.device() == Device::Cpu && value.numel() > 0 => rows as usize,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_devices_operations_do_what_the_loops_do() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let mut value = Tensor::arange(35, (Kind::Float, Device::Cpu)).view([5, 7]).sin_().to_kind(kind);
            let mut other = value.copy();
            let (mut loops, mut operations) = (Kept::new(&value, MomentKind::F32), Kept::new(&other, MomentKind::F32));
            for t in 1..=4 {
                let gradient = Tensor::arange(35, (Kind::Float, Device::Cpu)).view([5, 7]).g_mul_scalar(t as f64).cos();
                let by = Step { scale: 0.7, ..Step::new(t, 1e-2, 0.9, 0.999, 1e-8) };
                let mut squares = None;
                loops.step(&by, t, &mut value, &mut squares, &gradient).expect("steps");
                assert_eq!(squares.is_some(), kind == Kind::Float, "rounded numbers have other squares");
                let Moments::Full(full) = &mut operations.moments else { panic!("moments of 32 bits") };
                full.step_by_libtorch(&by, &mut other, &mut operations.master, &gradient * by.scale);
            }
            let whole = |kept: &Kept, value: &Tensor| kept.master.as_ref().unwrap_or(value).copy();
            let apart = (whole(&loops, &value) - whole(&operations, &other)).abs().max().double_value(&[]);
            assert!(apart < 1e-6, "{kind:?}: {apart}");
            assert_eq!((value.kind(), other.kind(), loops.master.is_some()), (kind, kind, kind == Kind::BFloat16));
        }
    }
}
