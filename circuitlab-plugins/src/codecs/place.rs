//! Says where in a block a value stands that a codec cannot hold.

use circuitlab_core::Error;

/// An error that names the first of `values` that is `wrong`, by its row and column: they are `values` of `row` from
/// `first_column` on.
pub(super) fn not_held(codec: &str, values: &[f32], row: usize, first_column: usize, wrong: impl Fn(f32) -> bool) -> Error {
    let place = values.iter().position(|value| wrong(*value)).unwrap_or(0);
    let value = values.get(place).copied().unwrap_or(f32::NAN);
    Error::Invalid(format!("codec `{codec}` cannot hold {value} at row {row}, column {}", first_column + place))
}
