//! What Adam keeps of one parameter, and its step.

use circuitlab_core::tensors::TensorFile;
use circuitlab_core::{ParameterSpec, Precision};
use circuitlab_kernels::adam::{NEVER, Real, Rows, Step, settle, step};
use circuitlab_kernels::slices::{numbers, numbers_mut};
use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// The state of one parameter.
#[derive(Debug)]
pub(super) struct Kept {
    /// The parameter itself, where what is computed with is a rounded copy.
    pub(super) master: Option<Tensor>,
    first: Tensor,
    second: Tensor,
    /// For each row how many steps it has missed, see [`Rows::missed`]; nothing where no row is passed over.
    missed: Vec<u32>,
}

impl Kept {
    /// Moments of zero.
    pub(super) fn new(value: &Tensor) -> Self {
        let kind = Precision::Full.kind(value.kind());
        let zeros = || Tensor::zeros(value.size(), (kind, value.device()));
        let master = (kind != value.kind()).then(|| value.to_kind(kind));
        Self { master, first: zeros(), second: zeros(), missed: vec![NEVER; rows(value)] }
    }

    /// Saved moments.
    ///
    /// # Errors
    /// Moments that are missing or of another shape.
    pub(super) fn read(value: &Tensor, spec: &ParameterSpec, [first, second]: [&TensorFile; 2]) -> Result<Self> {
        let mut kept = Self::new(value);
        for (moment, file) in [(&mut kept.first, first), (&mut kept.second, second)] {
            let saved = file.tensor(&spec.name, Some(moment.kind()), moment.device())?;
            if saved.size() != moment.size() {
                let message = format!("tensor `{}`: expected shape {:?}, got {:?}", spec.name, moment.size(), saved.size());
                return Err(circuitlab_core::Error::format(file.path(), message).into());
            }
            *moment = saved;
        }
        if !kept.missed.is_empty() {
            let begun = kept.first.ne(0.0).logical_or(&kept.second.ne(0.0)).flatten(1, -1).any_dim(1, false);
            let begun = Vec::<bool>::try_from(begun).map_err(circuitlab_core::Error::from)?;
            kept.missed = begun.into_iter().map(|begun| if begun { 0 } else { NEVER }).collect();
        }
        Ok(kept)
    }

    /// What a checkpoint holds of the moments: names and tensors of the first and of the second.
    ///
    /// # Errors
    /// A system that gives no threads.
    pub(super) fn saved(&mut self, name: &str, beta2: f64) -> Result<[Vec<(String, Tensor)>; 2]> {
        self.settle(beta2)?;
        Ok([&self.first, &self.second].map(|moment| vec![(name.to_owned(), moment.shallow_clone())]))
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

    /// Steps the parameter along its gradient.
    ///
    /// # Errors
    /// A gradient of another shape, and a system that gives no threads.
    pub(super) fn step(&mut self, by: &Step, value: &mut Tensor, gradient: &Tensor) -> Result<()> {
        let gradient =
            gradient.f_to_kind(self.first.kind()).and_then(|gradient| gradient.f_contiguous()).map_err(circuitlab_core::Error::from)?;
        match (value.device(), self.first.kind()) {
            (Device::Cpu, Kind::Float) => self.step_rows::<f32>(by, value, &gradient),
            (Device::Cpu, Kind::Double) => self.step_rows::<f64>(by, value, &gradient),
            _ => {
                self.step_by_libtorch(by, value, &gradient * by.scale);
                Ok(())
            }
        }
    }

    fn step_rows<T: Real>(&mut self, by: &Step, value: &mut Tensor, gradient: &Tensor) -> Result<()> {
        let defers = !self.missed.is_empty();
        let (value, rounded) = match &mut self.master {
            Some(master) if value.kind() == Kind::BFloat16 => (master, Some(numbers_mut::<bf16>(value)?)),
            _ => (value, None),
        };
        Ok(step(
            by,
            Rows {
                width: if defers { value.numel() / self.missed.len() } else { 1 },
                value: numbers_mut::<T>(value)?,
                rounded,
                first: numbers_mut(&mut self.first)?,
                second: numbers_mut(&mut self.second)?,
                gradient: numbers(gradient)?,
                missed: defers.then_some(&mut self.missed),
            },
        )?)
    }

    fn step_by_libtorch(&mut self, by: &Step, value: &mut Tensor, gradient: Tensor) {
        let Self { master, first, second, .. } = self;
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
