//! The numbers of a tensor as a slice.

use circuitlab_core::{Error, Result};
use half::bf16;
use tch::{Device, Kind, Tensor};

/// A type that a tensor's numbers can have.
pub trait Element: Copy + Send + Sync + 'static {
    /// libtorch's name of it.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for f64 {
    const KIND: Kind = Kind::Double;
}

impl Element for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

impl Element for i8 {
    const KIND: Kind = Kind::Int8;
}

impl Element for u8 {
    const KIND: Kind = Kind::Uint8;
}

fn check<T: Element>(tensor: &Tensor) -> Result<()> {
    if tensor.kind() == T::KIND && tensor.device() == Device::Cpu && tensor.is_contiguous() {
        return Ok(());
    }
    let (kind, device) = (tensor.kind(), tensor.device());
    Err(Error::Invalid(format!("expected a contiguous tensor of {:?} on the CPU, got one of {kind:?} on {device:?}", T::KIND)))
}

/// The numbers of a contiguous tensor on the CPU, in the order of its axes.
///
/// # Errors
/// A tensor of another type, on another device, or with gaps.
pub fn numbers<T: Element>(tensor: &Tensor) -> Result<&[T]> {
    check::<T>(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&[]);
    }
    #[allow(unsafe_code, reason = "tch has no way to read a tensor without a copy")]
    // SAFETY: the tensor is contiguous and holds `numel` numbers of type T in host memory, which it keeps alive as long as it is
    // borrowed. Another handle to the same memory could write to it meanwhile; the callers of this workspace hold no such handle
    // while they compute (see `numbers_mut`).
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>(), tensor.numel()) })
}

/// The same, to be written to. The caller sees to it that no other handle to the tensor's memory, such as a shallow clone, is read
/// or written while the slice lives.
///
/// # Errors
/// A tensor of another type, on another device, or with gaps.
pub fn numbers_mut<T: Element>(tensor: &mut Tensor) -> Result<&mut [T]> {
    check::<T>(tensor)?;
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    #[allow(unsafe_code, reason = "tch has no way to write to a tensor without a copy")]
    // SAFETY: as for `numbers`; the tensor is borrowed mutably, and its other handles rest by this function's contract.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_written_in_place() {
        let mut tensor = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        numbers_mut::<f32>(&mut tensor).expect("contiguous floats")[4] = 7.5;
        assert_eq!(numbers::<f32>(&tensor).expect("contiguous floats"), [0.0, 1.0, 2.0, 3.0, 7.5, 5.0]);
        assert!(numbers::<f64>(&tensor).is_err() && numbers::<f32>(&tensor.tr()).is_err());
        assert!(numbers::<f32>(&Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))).expect("nothing").is_empty());
        let short = Tensor::from_slice(&[1.5_f32]).to_kind(Kind::BFloat16);
        assert_eq!(numbers::<bf16>(&short).expect("one number"), [bf16::from_f32(1.5)]);
    }
}
