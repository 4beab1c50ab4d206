//! The norm of a whole gradient.

use circuitlab_core::parallel::MeshAxis;
use circuitlab_core::{ParallelismStrategy, Parameters, Update};
use circuitlab_kernels::adam::square_sum;
use circuitlab_kernels::slices::numbers;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// The norm of all gradients together. Parameters that several ranks have, such as decoder biases, count once; tracked
/// ones, which have a value in place of a gradient, do not.
///
/// `squares` are those that the step found on its way, one for each gradient. They are taken where no other ranks' gradients have been
/// added since; otherwise the gradients are read.
///
/// # Errors
/// What the strategy returns.
pub fn global_norm(gradients: &[Tensor], squares: Option<&[f64]>, params: &Parameters, strategy: &dyn ParallelismStrategy) -> Result<f64> {
    let known = squares.filter(|squares| squares.len() == gradients.len() && strategy.mesh().data.size == 1);
    let read;
    let squares = if let Some(squares) = known {
        squares
    } else {
        read = square_sums(gradients)?;
        &read
    };
    let mesh = strategy.mesh();
    let (mut sharded, mut owned, mut shared) = (0.0, 0.0, 0.0);
    for (spec, square) in params.specs().iter().zip(squares).filter(|(spec, _)| spec.update == Update::Gradient) {
        *(match (spec.is_sharded(&mesh), spec.per_feature) {
            (true, _) => &mut sharded,
            (false, true) => &mut owned,
            (false, false) => &mut shared,
        }) += square;
    }
    let mut owned = Tensor::from(owned);
    if mesh.sharded && mesh.data.size > 1 {
        let mut sharded = Tensor::from(sharded);
        strategy.sum(MeshAxis::Data, &mut sharded)?;
        owned += sharded;
    }
    strategy.sum(MeshAxis::Feature, &mut owned)?;
    Ok((owned.double_value(&[]) + shared).sqrt())
}

/// What gradients of a norm are multiplied by so that none is longer than `limit`, as torch's `clip_grad_norm_` has it.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}

/// The sum of squares of each tensor, in 64 bits.
fn square_sums(gradients: &[Tensor]) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; gradients.len()];
    let mut elsewhere = Vec::new();
    for (place, gradient) in gradients.iter().enumerate() {
        match (gradient.device(), gradient.kind(), gradient.is_contiguous()) {
            (Device::Cpu, Kind::Float, true) => sums[place] = square_sum::<f32>(numbers(gradient)?)?,
            (Device::Cpu, Kind::Double, true) => sums[place] = square_sum::<f64>(numbers(gradient)?)?,
            _ => elsewhere.push((place, gradient.to_kind(Kind::Float).square().sum(Kind::Double))),
        }
    }
    if elsewhere.is_empty() {
        return Ok(sums);
    }
    // One question to the device, and not one for each.
    let read = Tensor::stack(&elsewhere.iter().map(|(_, sum)| sum).collect::<Vec<_>>(), 0);
    for ((place, _), sum) in elsewhere.iter().zip(Vec::<f64>::try_from(read).map_err(circuitlab_core::Error::from)?) {
        sums[*place] = sum;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Axis, Init, Mesh, ParameterSpec, Precision};

    use super::*;

    #[derive(Debug)]
    struct Ranks(usize);

    impl ParallelismStrategy for Ranks {
        fn mesh(&self) -> Mesh {
            Mesh { data: Axis { rank: 0, size: self.0 }, feature: Axis::SINGLE, sharded: false }
        }

        fn sum(&self, _: MeshAxis, _: &mut Tensor) -> circuitlab_core::Result<()> {
            Ok(())
        }

        fn barrier(&self) -> circuitlab_core::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn squares_of_the_step_are_taken_unless_ranks_were_added_up() {
        let spec = |name: &str, update| ParameterSpec {
            name: name.into(),
            layer: 0,
            shape: vec![2],
            init: Init::Constant(1.0),
            per_feature: true,
            update,
            precision: Precision::Full,
        };
        let specs = vec![spec("trained", Update::Gradient), spec("followed", Update::Tracked)];
        let params = Parameters::init(specs, 0, Kind::Double, Device::Cpu).expect("fits");
        let gradients = [Tensor::from_slice(&[3.0, 4.0]), Tensor::from_slice(&[70.0, 80.0])];
        let norm = |squares: Option<&[f64]>, ranks| global_norm(&gradients, squares, &params, &Ranks(ranks)).expect("sums");
        let is = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} is not {want}");
        is(norm(None, 1), 5.0);
        is(norm(Some(&[36.0, 1e9]), 1), 6.0);
        is(norm(Some(&[36.0, 1e9]), 2), 5.0);
        let turned = [Tensor::from_slice(&[3.0_f32, 4.0]).view([1, 2]).tr().to_kind(Kind::BFloat16), Tensor::from(0.0)];
        is(global_norm(&turned, None, &params, &Ranks(1)).expect("sums"), 5.0);
        is(clip_scale(0.5, 1.0), 1.0);
        is(clip_scale(5.0, 1.0), 1.0 / 5.000_001);
    }
}
