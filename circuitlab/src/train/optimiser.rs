//! Adam, and clipping by the global norm.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{Error as CoreError, ParallelismStrategy, ParameterSpec, Parameters, Update};
use tch::{Kind, Tensor};

use super::config::OptimiserConfig;
use crate::Result;

/// Scales gradients down to `limit` where their global norm is longer, as torch's `clip_grad_norm_` does, and gives the
/// norm before that. Parameters that every rank of the feature axis has, such as decoder biases, count once; tracked ones, which
/// have a value in place of a gradient, neither count nor are scaled.
///
/// # Errors
/// What the strategy returns.
pub fn clip_by_global_norm(gradients: &mut [Tensor], params: &Parameters, limit: f64, strategy: &dyn ParallelismStrategy) -> Result<f64> {
    let (mut owned, mut shared) = (0.0, 0.0);
    let mut trained: Vec<(&mut Tensor, &ParameterSpec)> =
        gradients.iter_mut().zip(params.specs()).filter(|(_, spec)| spec.update == Update::Gradient).collect();
    for (gradient, spec) in &trained {
        let square = gradient.square().sum(Kind::Double).double_value(&[]);
        *(if spec.per_feature { &mut owned } else { &mut shared }) += square;
    }
    let mut owned = Tensor::from(owned);
    strategy.sum(MeshAxis::Feature, &mut owned)?;
    let norm = (owned.double_value(&[]) + shared).sqrt();
    let scale = limit / (norm + 1e-6);
    if scale < 1.0 {
        for (gradient, _) in &mut trained {
            let _ = gradient.g_mul_scalar_(scale);
        }
    }
    Ok(norm)
}

/// Adam with both moments in the parameters' own type:
///
/// ```text
/// m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
/// p = p - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
/// ```
///
/// A tracked parameter is set to what stands in its gradient's place.
#[derive(Debug)]
pub struct Adam {
    config: OptimiserConfig,
    steps: u64,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
}

impl Adam {
    /// Moments of zero.
    pub fn new(config: OptimiserConfig, params: &Parameters) -> Self {
        let zeros = || params.values().iter().map(Tensor::zeros_like).collect();
        Self { config, steps: 0, first: zeros(), second: zeros() }
    }

    /// Continues from saved moments after `steps` steps.
    ///
    /// # Errors
    /// Moments that do not fit the parameters.
    pub fn resume(config: OptimiserConfig, params: &Parameters, steps: u64, first: Vec<Tensor>, second: Vec<Tensor>) -> Result<Self> {
        let fits = |moments: &[Tensor]| {
            moments.len() == params.values().len()
                && moments.iter().zip(params.values()).all(|(moment, value)| moment.size() == value.size())
        };
        if !fits(&first) || !fits(&second) {
            return Err(CoreError::Invalid("the saved optimiser state does not fit the parameters".to_owned()).into());
        }
        Ok(Self { config, steps, first, second })
    }

    /// First and second moments, in the order of the parameters.
    pub fn moments(&self) -> (&[Tensor], &[Tensor]) {
        (&self.first, &self.second)
    }

    /// One step at the given learning rate.
    pub fn step(&mut self, params: &mut Parameters, gradients: &[Tensor], learning_rate: f64) {
        self.steps += 1;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (beta1, beta2) = (self.config.beta1, self.config.beta2);
        let rate = learning_rate / (1.0 - beta1.powi(exponent));
        let second_scale = (1.0 - beta2.powi(exponent)).sqrt();
        let moments = self.first.iter_mut().zip(&mut self.second);
        for (((spec, value), gradient), (first, second)) in params.entries_mut().zip(gradients).zip(moments) {
            if spec.update == Update::Tracked {
                value.copy_(gradient);
                continue;
            }
            let _ = first.lerp_(gradient, 1.0 - beta1);
            let _ = second.g_mul_scalar_(beta2).addcmul_(&(gradient * (1.0 - beta2)), gradient);
            let mut root = second.sqrt();
            let _ = root.g_div_scalar_(second_scale).g_add_scalar_(self.config.epsilon).g_mul_scalar_(-1.0 / rate);
            let _ = value.addcdiv_(first, &root);
        }
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Init, Precision, Registry, Spec};
    use tch::Device;

    use super::*;

    #[test]
    fn a_tracked_parameter_is_assigned_and_does_not_count() {
        let spec = |name: &str, update| ParameterSpec {
            name: name.into(),
            layer: 0,
            shape: vec![2],
            init: Init::Constant(1.0),
            per_feature: true,
            update,
            precision: Precision::Compute,
        };
        let specs = vec![spec("trained", Update::Gradient), spec("followed", Update::Tracked)];
        let mut params = Parameters::init(specs, 0, Kind::Double, Device::Cpu).expect("fits");
        let mut gradients = [Tensor::from_slice(&[3.0, 4.0]), Tensor::from_slice(&[70.0, 80.0])];
        circuitlab_plugins::link();
        let single = Registry::linked().and_then(|known| known.build::<dyn ParallelismStrategy>(&Spec::named("single"))).expect("builds");
        let norm = clip_by_global_norm(&mut gradients, &params, 1.0, &*single).expect("one rank");
        assert!((norm - 5.0).abs() < 1e-12, "{norm}");
        assert!((gradients[0].double_value(&[1]) - 0.8).abs() < 1e-6, "scaled to a norm of 1");
        let mut adam = Adam::new(OptimiserConfig::default(), &params);
        adam.step(&mut params, &gradients, 0.1);
        assert!((params.values()[0].double_value(&[0]) - 0.9).abs() < 1e-6, "the first step of Adam is the rate");
        assert_eq!(params.values()[1], Tensor::from_slice(&[70.0, 80.0]));
        assert_eq!(adam.moments().0[1], Tensor::from_slice(&[0.0, 0.0]));
    }
}
