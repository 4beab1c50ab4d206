//! Whether a codec keeps its word.

use circuitlab_core::{BlockShape, CodecChain};

use crate::{Error, Result};

/// Decodes what a codec made of a block, and compares each value within the bound that the codec states. One block of each chunk is
/// looked at so when it is written: a codec that encodes nonsense is found then, and not when the model is long gone.
///
/// # Errors
/// Bytes that the codec itself does not take, and the first value that is further off than stated.
pub(super) fn check_kept(codec: &CodecChain, values: &[f32], encoded: &[u8], shape: BlockShape) -> Result<()> {
    let decoded = codec.decode(encoded, shape)?;
    let bounds = codec.error_bounds(values, shape)?;
    if bounds.len() != values.len() {
        return Err(Error::Invalid(format!("codec `{}` gave {} bounds for {} values", codec.spec(), bounds.len(), values.len())));
    }
    let differs = |place: usize| {
        let (value, decoded) = (values[place], decoded[place]);
        // So written that NaN differs from everything.
        let close = (f64::from(value) - f64::from(decoded)).abs() <= f64::from(bounds[place]);
        value.to_bits() != decoded.to_bits() && !(close && bounds[place] > 0.0)
    };
    let Some(place) = (0..values.len()).find(|place| differs(*place)) else {
        return Ok(());
    };
    let (row, column) = (place / shape.width.max(1), place % shape.width.max(1));
    Err(Error::Invalid(format!(
        "codec `{}` made {:e} of {:e} at row {row}, column {column}; it states an error of at most {:e}",
        codec.spec(),
        decoded[place],
        values[place],
        bounds[place]
    )))
}
