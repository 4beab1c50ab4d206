//! The memory of batches, used again and again.

use std::sync::mpsc::Receiver;

use circuitlab_core::Batch;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Where batches are made in.
pub(super) struct Memory {
    /// `[rows, layer, d_model]`.
    shape: [i64; 3],
    /// The device that it is pinned for.
    pinned: Option<Device>,
    /// What the trainer has done with.
    returned: Receiver<Batch>,
}

impl Memory {
    pub(super) fn new(shape: [i64; 3], pinned: Option<Device>, returned: Receiver<Batch>) -> Self {
        Self { shape, pinned: pinned.filter(|device| device.is_cuda()), returned }
    }

    /// A batch to be filled, with whatever it held.
    pub(super) fn take(&self) -> Result<Batch> {
        if let Some(batch) = self.returned.try_iter().find(|batch| self.fits(&batch.inputs) && self.fits(&batch.targets)) {
            return Ok(batch);
        }
        Ok(Batch { inputs: self.fresh()?, targets: self.fresh()? })
    }

    fn fits(&self, tensor: &Tensor) -> bool {
        tensor.size() == self.shape && tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.is_contiguous()
    }

    fn fresh(&self) -> Result<Tensor> {
        let zeros = Tensor::f_zeros(self.shape, (Kind::Float, Device::Cpu));
        let made = zeros.and_then(|zeros| self.pinned.map_or(Ok(zeros.shallow_clone()), |device| zeros.f_pin_memory(device)));
        let [rows, layers, width] = self.shape;
        made.map_err(|error| {
            let error = circuitlab_core::Error::from(error);
            Error::Invalid(format!("there is no memory for a batch of {rows} rows of {layers} x {width} numbers: {error}"))
        })
    }
}
