//! The wish that a run end before its last step, on which all its ranks agree.

use circuitlab_core::ParallelismStrategy;
use circuitlab_core::parallel::MeshAxis;
use tch::Tensor;

use crate::Result;

/// Whether any rank was asked to stop. Every rank asks after the same steps and hears the same, so that all stop after one step, whoever
/// was asked and when: a signal reaches ranks at different moments, or one of them alone.
///
/// # Errors
/// What the strategy returns.
pub(super) fn agreed(asked: bool, strategy: &dyn ParallelismStrategy) -> Result<bool> {
    let mesh = strategy.mesh();
    let mut asked = Tensor::from(if asked { 1.0_f64 } else { 0.0 });
    for (axis, ranks) in [(MeshAxis::Data, mesh.data.size), (MeshAxis::Feature, mesh.feature.size)] {
        if ranks > 1 {
            strategy.sum(axis, &mut asked)?;
        }
    }
    Ok(asked.double_value(&[]) > 0.0)
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Axis, Mesh};

    use super::*;

    /// A mesh whose other ranks of an axis were asked so often.
    #[derive(Debug)]
    struct Others {
        data: f64,
        feature: f64,
    }

    impl ParallelismStrategy for Others {
        fn mesh(&self) -> Mesh {
            let axis = |asked: f64| if asked < 0.0 { Axis::SINGLE } else { Axis { rank: 0, size: 3 } };
            Mesh { data: axis(self.data), feature: axis(self.feature), sharded: false }
        }

        fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> circuitlab_core::Result<()> {
            let others = if axis == MeshAxis::Data { self.data } else { self.feature };
            assert!(others >= 0.0, "nobody is asked who is alone");
            *tensor += others;
            Ok(())
        }

        fn barrier(&self) -> circuitlab_core::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_stop_when_one_was_asked() {
        for (own, data, feature, want) in [
            (false, -1.0, -1.0, false),
            (true, -1.0, -1.0, true),
            (false, 0.0, 0.0, false),
            (false, 2.0, 0.0, true),
            (false, -1.0, 1.0, true),
            (true, 0.0, 0.0, true),
        ] {
            assert_eq!(agreed(own, &Others { data, feature }).expect("sums"), want, "{own} {data} {feature}");
        }
    }
}
