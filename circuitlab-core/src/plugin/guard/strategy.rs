//! Guarded parallelism strategies.

use tch::{Device, Tensor};

use super::guarded::Guarded;
use crate::error::catch_plugin;
use crate::parallel::{MeshAxis, Pending};
use crate::traffic::Traffic;
use crate::{Mesh, ParallelismStrategy, Result};

/// Guards a strategy.
///
/// # Errors
/// A panic while it describes its mesh.
pub fn strategy<T: ParallelismStrategy + 'static>(what: &'static str, made: T) -> Result<Box<dyn ParallelismStrategy>> {
    Ok(Box::new(Guarded::new(what, made).ask(T::mesh)?))
}

impl<T: ParallelismStrategy> ParallelismStrategy for Guarded<T, Mesh> {
    fn mesh(&self) -> Mesh {
        self.facts
    }

    fn sum(&self, axis: MeshAxis, tensor: &mut Tensor) -> Result<()> {
        self.call(|strategy| strategy.sum(axis, tensor))
    }

    fn reduce_gradients(&self, gradients: &mut [Tensor]) -> Result<()> {
        self.call(|strategy| strategy.reduce_gradients(gradients))
    }

    fn gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Tensor> {
        self.call(|strategy| strategy.gather(axis, own, rows))
    }

    fn begin_sum(&self, axis: MeshAxis, tensor: Tensor) -> Result<Pending> {
        self.begin(|strategy| strategy.begin_sum(axis, tensor))
    }

    fn begin_gather(&self, axis: MeshAxis, own: &Tensor, rows: usize) -> Result<Pending> {
        self.begin(|strategy| strategy.begin_gather(axis, own, rows))
    }

    fn begin_scatter(&self, axis: MeshAxis, whole: &Tensor) -> Result<Pending> {
        self.begin(|strategy| strategy.begin_scatter(axis, whole))
    }

    fn barrier(&self) -> Result<()> {
        self.call(T::barrier)
    }

    fn device(&self, asked: Device) -> Result<Device> {
        self.call(|strategy| strategy.device(asked))
    }

    fn traffic(&self) -> Result<Vec<Traffic>> {
        self.call(T::traffic)
    }
}

impl<T: ParallelismStrategy> Guarded<T, Mesh> {
    /// Guards an operation until its end, which comes after the call.
    fn begin(&self, body: impl FnOnce(&T) -> Result<Pending>) -> Result<Pending> {
        let (what, pending) = (self.what(), self.call(body)?);
        Ok(Pending::new(move || catch_plugin(what, || pending.wait())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tch::Kind;

    use super::*;
    use crate::traffic::Collective;

    /// Writes down what it is asked for.
    #[derive(Debug, Default)]
    struct Asked(Mutex<Vec<&'static str>>);

    impl Asked {
        fn note(&self, what: &'static str) {
            self.0.lock().expect("no panic").push(what);
        }
    }

    const SENT: Traffic = Traffic { axis: MeshAxis::Feature, collective: Collective::Gather, calls: 3, bytes: 70 };

    impl ParallelismStrategy for &'static Asked {
        fn mesh(&self) -> Mesh {
            Mesh::SINGLE
        }

        fn sum(&self, _: MeshAxis, _: &mut Tensor) -> Result<()> {
            self.note("sum");
            Ok(())
        }

        fn reduce_gradients(&self, _: &mut [Tensor]) -> Result<()> {
            self.note("reduce_gradients");
            Ok(())
        }

        fn gather(&self, _: MeshAxis, own: &Tensor, _: usize) -> Result<Tensor> {
            self.note("gather");
            Ok(own.shallow_clone())
        }

        fn begin_sum(&self, _: MeshAxis, _: Tensor) -> Result<Pending> {
            self.note("begin_sum");
            Ok(Pending::new(|| panic!("at the end")))
        }

        fn begin_gather(&self, _: MeshAxis, own: &Tensor, _: usize) -> Result<Pending> {
            self.note("begin_gather");
            Ok(Pending::done(own.shallow_clone()))
        }

        fn begin_scatter(&self, _: MeshAxis, whole: &Tensor) -> Result<Pending> {
            self.note("begin_scatter");
            Ok(Pending::done(whole.shallow_clone()))
        }

        fn barrier(&self) -> Result<()> {
            self.note("barrier");
            Ok(())
        }

        fn device(&self, _: Device) -> Result<Device> {
            self.note("device");
            Ok(Device::Cuda(5))
        }

        fn traffic(&self) -> Result<Vec<Traffic>> {
            self.note("traffic");
            Ok(vec![SENT])
        }
    }

    #[test]
    fn every_call_arrives() {
        let asked: &'static Asked = Box::leak(Box::default());
        let guarded = super::strategy("strategy `asked`", asked).expect("no panic");
        let mut tensor = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        guarded.sum(MeshAxis::Data, &mut tensor).expect("answers");
        guarded.reduce_gradients(&mut [tensor.shallow_clone()]).expect("answers");
        guarded.gather(MeshAxis::Data, &tensor, 2).map(drop).expect("answers");
        let late = guarded.begin_sum(MeshAxis::Data, tensor.shallow_clone()).expect("answers").wait().expect_err("caught");
        assert!(late.to_string().contains("at the end"), "{late}");
        guarded.begin_gather(MeshAxis::Data, &tensor, 2).expect("answers").wait().map(drop).expect("answers");
        guarded.begin_scatter(MeshAxis::Data, &tensor).expect("answers").wait().map(drop).expect("answers");
        guarded.barrier().expect("answers");
        assert_eq!(guarded.device(Device::Cuda(0)).expect("answers"), Device::Cuda(5));
        assert_eq!(guarded.traffic().expect("answers"), [SENT]);
        assert_eq!(
            *asked.0.lock().expect("no panic"),
            ["sum", "reduce_gradients", "gather", "begin_sum", "begin_gather", "begin_scatter", "barrier", "device", "traffic"]
        );
    }
}
