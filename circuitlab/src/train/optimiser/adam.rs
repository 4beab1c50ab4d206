//! Adam over all parameters.

use circuitlab_core::{Error as CoreError, Parameters, Update};
use circuitlab_kernels::adam::Step;
use tch::{Kind, Tensor};

use super::kept::Kept;
use crate::Result;
use crate::train::OptimiserConfig;

/// Adam. Moments are of at least 32 bits, or of 8 where the config says so:
///
/// ```text
/// m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
/// p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
/// ```
///
/// A parameter of fewer bits is the rounding of a master copy, which is what is stepped. A tracked parameter is set to what stands in
/// its gradient's place. On CPUs, rows of a parameter without gradient are left alone where that changes nothing (see
/// [`circuitlab_kernels::adam`]).
#[derive(Debug)]
pub struct Adam {
    config: OptimiserConfig,
    steps: u64,
    kept: Vec<Kept>,
}

impl Adam {
    /// Moments of zero.
    pub fn new(config: OptimiserConfig, params: &Parameters) -> Self {
        let kept = params.values().iter().map(|value| Kept::new(value, config.moments)).collect();
        Self { config, steps: 0, kept }
    }

    /// The same of a rank's part of the parameters, of which the rows from `first_rows` on are its own, in the order of the parameters.
    #[must_use]
    pub fn of_part(mut self, first_rows: impl IntoIterator<Item = usize>) -> Self {
        for (kept, first) in self.kept.iter_mut().zip(first_rows) {
            kept.first_row = first as u64;
        }
        self
    }

    /// Goes on after `steps` steps from what [`saved_moments`](Self::saved_moments) gave: `saved` is asked for the tensors of each parameter,
    /// by its place, the tensor's name and its type.
    ///
    /// # Errors
    /// What `saved` returns, and moments that do not fit the parameters.
    pub fn resume(&mut self, params: &Parameters, steps: u64, mut saved: impl FnMut(usize, &str, Kind) -> Result<Tensor>) -> Result<()> {
        for (position, (spec, kept)) in params.specs().iter().zip(&mut self.kept).enumerate() {
            kept.read(|name, kind| saved(position, &format!("{}.{name}", spec.name), kind))?;
        }
        self.steps = steps;
        Ok(())
    }

    /// Rounds the parameters to what a run in `kind` computes with, and keeps master copies of those that lose bits by it.
    ///
    /// # Errors
    /// libtorch's, where there is no memory.
    pub fn round(&mut self, params: &mut Parameters, kind: Kind) -> Result<()> {
        for ((spec, value, squares), kept) in params.entries_mut().zip(&mut self.kept) {
            let kind = spec.precision.kind(kind);
            if kind != value.kind() {
                let rounded = value.f_to_kind(kind).map_err(CoreError::from)?;
                kept.master = Some(std::mem::replace(value, rounded));
                *squares = None;
            }
        }
        Ok(())
    }

    /// The parameters in all their bits. They share memory with what is stepped.
    ///
    /// # Errors
    /// None but those of parameters that are not this optimiser's.
    pub fn masters(&self, params: &Parameters) -> Result<Parameters> {
        let values = params.values().iter().zip(&self.kept);
        let values = values.map(|(value, kept)| kept.master.as_ref().unwrap_or(value).shallow_clone()).collect();
        Ok(Parameters::new(params.specs().to_vec(), values)?)
    }

    /// Moments by parameter and name, as they are saved: `W_enc_0.first`. Each has its parameter's rows. They share memory with what is
    /// stepped.
    ///
    /// # Errors
    /// A system that gives no threads.
    pub fn saved_moments(&mut self, params: &Parameters) -> Result<Vec<(usize, String, Tensor)>> {
        let mut all = Vec::new();
        for (position, (spec, kept)) in params.specs().iter().zip(&mut self.kept).enumerate() {
            let moments = kept.saved(self.config.beta2)?.into_iter();
            all.extend(moments.map(|(name, tensor)| (position, format!("{}.{name}", spec.name), tensor)));
        }
        Ok(all)
    }

    /// One step at the given learning rate, along gradients that are multiplied by `scale`.
    ///
    /// # Errors
    /// Gradients of other shapes than the parameters, and a system that gives no threads.
    pub fn step(&mut self, params: &mut Parameters, gradients: &[Tensor], learning_rate: f64, scale: f64) -> Result<()> {
        if gradients.len() != self.kept.len() {
            return Err(CoreError::Invalid(format!("{} gradients for {} parameters", gradients.len(), self.kept.len())).into());
        }
        self.steps += 1;
        let OptimiserConfig { beta1, beta2, epsilon, .. } = self.config;
        let by = Step { scale, ..Step::new(self.steps, learning_rate, beta1, beta2, epsilon) };
        for (((spec, value, squares), gradient), kept) in params.entries_mut().zip(gradients).zip(&mut self.kept) {
            if gradient.size() != spec.shape {
                let message = format!("gradient of `{}`: expected shape {:?}, got {:?}", spec.name, spec.shape, gradient.size());
                return Err(CoreError::Invalid(message).into());
            }
            match spec.update {
                Update::Gradient => kept.step(&by, self.steps, value, squares, gradient)?,
                Update::Tracked => {
                    *squares = None;
                    [kept.master.as_mut(), Some(value)].into_iter().flatten().for_each(|value| value.copy_(gradient));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Init, ParameterSpec, Precision};
    use tch::Device;

    use super::*;
    use crate::train::MomentKind;

    fn spec(name: &str, shape: &[i64], update: Update) -> ParameterSpec {
        let init = Init::Uniform { limit: 0.5 };
        let precision = if shape.len() > 1 { Precision::Compute } else { Precision::Full };
        ParameterSpec { name: name.into(), layer: 0, shape: shape.to_vec(), init, per_feature: true, update, precision }
    }

    fn params(kind: Kind) -> Parameters {
        let specs = vec![spec("W_enc_0", &[3, 5], Update::Gradient), spec("log_threshold_0", &[3], Update::Gradient)];
        Parameters::init(specs, 7, kind, Device::Cpu).expect("fits")
    }

    #[test]
    fn a_tracked_parameter_is_assigned() {
        let specs = vec![spec("trained", &[2], Update::Gradient), spec("followed", &[2], Update::Tracked)];
        let mut params = Parameters::new(specs, vec![Tensor::from_slice(&[1.0, 1.0]), Tensor::from_slice(&[1.0, 1.0])]).expect("fits");
        let gradients = [Tensor::from_slice(&[3.0, 4.0]), Tensor::from_slice(&[70.0, 80.0])];
        let mut adam = Adam::new(OptimiserConfig::default(), &params);
        adam.step(&mut params, &gradients, 0.1, 0.2).expect("steps");
        assert!((params.values()[0].double_value(&[0]) - 0.9).abs() < 1e-6, "the first step of Adam is the rate");
        assert_eq!(params.values()[1], Tensor::from_slice(&[70.0, 80.0]));
        let moments = adam.saved_moments(&params).expect("nothing to settle");
        let names: Vec<&str> = moments.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(names, ["trained.first", "trained.second", "followed.first", "followed.second"]);
        assert!((moments[0].2.double_value(&[1]) - 0.1 * 0.2 * 4.0).abs() < 1e-15, "the scale goes into the gradient");
        assert_eq!(moments[2].2, Tensor::from_slice(&[0.0, 0.0]));
        let short = [Tensor::from_slice(&[3.0]), Tensor::from_slice(&[70.0, 80.0])];
        assert!(adam.step(&mut params, &short, 0.1, 1.0).expect_err("too short").to_string().contains("expected shape [2], got [1]"));
    }

    #[test]
    fn a_resumed_optimiser_goes_on_to_the_bit() {
        for (beta1, moments) in [(0.0, MomentKind::F32), (0.9, MomentKind::F32), (0.9, MomentKind::Int8)] {
            let config = OptimiserConfig { beta1, moments, ..OptimiserConfig::default() };
            let gradients = |at: i64| {
                let row = Tensor::from_slice(&[1.0_f32, 0.0, -0.5]).g_mul_scalar(f64::from(i32::from(at % 2 == 0)));
                [row.view([3, 1]).expand([3, 5], false), Tensor::from_slice(&[0.1_f32 * at as f32, 0.0, 1.0])]
            };
            let mut whole = params(Kind::Float);
            let mut adam = Adam::new(config.clone(), &whole);
            for at in 0..3 {
                adam.step(&mut whole, &gradients(at), 1e-2, 0.7).expect("steps");
            }
            let mut later = whole.copy();
            let saved = adam.saved_moments(&whole).expect("settles");
            let mut resumed = Adam::new(config, &later);
            let read = |position, name: &str, kind| {
                let (_, _, tensor) = saved.iter().find(|known| known.0 == position && known.1 == name).expect("was saved");
                assert_eq!(tensor.kind(), kind);
                Ok(tensor.copy())
            };
            resumed.resume(&later, 3, read).expect("fits");
            for at in 3..8 {
                adam.step(&mut whole, &gradients(at), 1e-2, 0.7).expect("steps");
                resumed.step(&mut later, &gradients(at), 1e-2, 0.7).expect("steps");
            }
            assert_eq!(whole.values(), later.values());
            assert_eq!(adam.saved_moments(&whole).expect("settles"), resumed.saved_moments(&later).expect("settles"));
        }
    }

    /// Parameters of 16 bits with masters, and their optimiser.
    fn in_16_bits() -> (Parameters, Adam) {
        let mut whole = params(Kind::Float);
        let mut adam = Adam::new(OptimiserConfig::default(), &whole);
        adam.round(&mut whole, Kind::BFloat16).expect("memory");
        (whole, adam)
    }

    #[test]
    fn a_run_in_16_bits_moves_by_steps_that_16_bits_do_not_have() {
        let (mut params, mut adam) = in_16_bits();
        assert_eq!(params.values().iter().map(Tensor::kind).collect::<Vec<_>>(), [Kind::BFloat16, Kind::Float]);
        let threshold = params.values()[1].double_value(&[0]);
        let weight = adam.masters(&params).expect("fits").values()[0].double_value(&[0, 0]);
        // A hundredth of the distance between two numbers of 16 bits about 0.03.
        let rate = 1e-5;
        let gradients = [Tensor::ones([3, 5], (Kind::Float, Device::Cpu)), Tensor::ones([3], (Kind::Float, Device::Cpu))];
        for step in 1..=400_i32 {
            adam.step(&mut params, &gradients, rate, 1.0).expect("steps");
            let moved = threshold - params.values()[1].double_value(&[0]);
            assert!((moved - f64::from(step) * rate).abs() < 0.02 * f64::from(step) * rate, "step {step}: {moved}");
        }
        let master = adam.masters(&params).expect("fits").values()[0].shallow_clone();
        assert!((weight - master.double_value(&[0, 0]) - 400.0 * rate).abs() < 1e-4, "masters move as thresholds do");
        assert_eq!(params.values()[0], master.to_kind(Kind::BFloat16), "and what is computed with is their rounding");
    }

    #[test]
    fn second_moments_of_a_run_in_16_bits_decay() {
        let (mut params, mut adam) = in_16_bits();
        let ones = [Tensor::ones([3, 5], (Kind::BFloat16, Device::Cpu)), Tensor::ones([3], (Kind::Float, Device::Cpu))];
        adam.step(&mut params, &ones, 1e-3, 1.0).expect("gradients of 16 bits are widened");
        let zeros = ones.map(|gradient| gradient.zeros_like());
        let second =
            |adam: &mut Adam, params: &Parameters| adam.saved_moments(params).expect("nothing to settle")[1].2.double_value(&[1, 1]);
        let mut before = second(&mut adam, &params);
        assert!((before - 1e-3).abs() < 1e-8, "{before}");
        for _ in 0..100 {
            adam.step(&mut params, &zeros, 1e-3, 1.0).expect("steps");
            let now = second(&mut adam, &params);
            assert!((now / before - 0.999).abs() < 1e-6, "{before} fell to {now}");
            before = now;
        }
    }
}
