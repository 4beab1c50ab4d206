//! Shape checks at the door of public functions: an error names the operation, the axes and both shapes.

use tch::Tensor;

use crate::{Error, Result};

/// Checks that `tensor` has exactly these axes; a size of -1 means any.
///
/// # Errors
/// [`Error::Shape`], such as `encode: expected shape [batch=any, d_model=12], got [3, 13]`.
pub fn expect(operation: &'static str, tensor: &Tensor, axes: &[(&str, i64)]) -> Result<()> {
    let got = tensor.size();
    let fits = got.len() == axes.len() && axes.iter().zip(&got).all(|((_, want), size)| *want == -1 || want == size);
    if fits {
        return Ok(());
    }
    let expected: Vec<String> =
        axes.iter().map(|(name, size)| if *size == -1 { format!("{name}=any") } else { format!("{name}={size}") }).collect();
    Err(Error::Shape { operation, expected: format!("[{}]", expected.join(", ")), got: format!("{got:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_both_shapes_and_the_axes() {
        let tensor = Tensor::zeros([3, 13], (tch::Kind::Float, tch::Device::Cpu));
        assert!(expect("encode", &tensor, &[("batch", -1), ("d_model", 13)]).is_ok());
        let error = expect("encode", &tensor, &[("batch", -1), ("d_model", 12)]).expect_err("13 is not 12");
        assert_eq!(error.to_string(), "encode: expected shape [batch=any, d_model=12], got [3, 13]");
        assert!(expect("encode", &tensor, &[("d_model", 13)]).is_err());
    }
}
