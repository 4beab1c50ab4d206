//! Whole files.

use std::path::Path;

use tch::{Device, Tensor};

use super::{FileLayout, TensorLayout};
use crate::{Result, files};

/// Writes tensors to a file, atomically. They may be many times what is left of the memory: a piece of one is copied at a time.
///
/// # Errors
/// Types that safetensors has not, and what the file system returns.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let layout = FileLayout::new(path, tensors.iter().map(|(name, tensor)| TensorLayout::of(name, tensor)).collect());
    files::replace(path, |file, part| {
        let mut writer = layout.fill(file, part)?;
        for (name, tensor) in tensors {
            writer.rows(name, 0, tensor)?;
        }
        writer.finish()?;
        Ok(())
    })
}

/// The bytes of a tensor, row by row, little endian.
///
/// # Errors
/// libtorch's.
pub fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut data = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut data, tensor.numel())?;
    Ok(data)
}
