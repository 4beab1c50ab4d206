//! `bf16`: each value as a bfloat16, the upper half of a 32-bit float rounded to nearest even.

use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Construct, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::place;

register!(codec "bf16" => Bf16Config, "bfloat16: 2 bytes a value, relative error at most 1/256");

/// Config of the codec `bf16`; it has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bf16Config {}

impl Construct for Bf16Config {
    type Output = Bf16;

    fn construct(&self) -> Result<Bf16> {
        Ok(Bf16)
    }
}

/// Little-endian bfloat16, row by row. Infinities are kept; NaN is refused.
#[derive(Debug, Clone, Copy)]
pub struct Bf16;

/// The bits of infinity; those of NaN without its sign are above.
const INFINITY: u32 = 0x7f80_0000;

impl ActivationCodec for Bf16 {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        let mut encoded = vec![0; self.max_encoded_bytes(shape)?];
        // Looked for in the same pass: a search that stops at the first would not vectorise.
        let mut largest = 0_i32;
        for (half, value) in encoded.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            largest = largest.max((value.to_bits() & 0x7fff_ffff) as i32);
            *half = round(*value).to_le_bytes();
        }
        if largest as u32 > INFINITY {
            let width = shape.width.max(1);
            let place = values.iter().position(|value| value.is_nan()).unwrap_or(0);
            let row = place / width;
            return Err(place::not_held("bf16", &values[place..], row, place % width, f32::is_nan));
        }
        Ok(encoded)
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let halves = halves(bytes, shape)?;
        Ok(halves.iter().copied().map(widened).collect())
    }

    fn decode_rows(&self, bytes: &[u8], shape: BlockShape, first_row: usize, values: &mut [f32]) -> Result<()> {
        let range = shape.range_of(first_row, values.len())?;
        values.iter_mut().zip(&halves(bytes, shape)?[range]).for_each(|(value, half)| *value = widened(*half));
        Ok(())
    }

    fn has_row_access(&self) -> bool {
        true
    }

    fn error_bounds(&self, values: &[f32], _: BlockShape) -> Result<Vec<f32>> {
        // Eight bits of mantissa; below the smallest normal number the step is constant.
        let bound = |value: &f32| if value.is_finite() { value.abs() / 256.0 + f32::MIN_POSITIVE / 128.0 } else { 0.0 };
        Ok(values.iter().map(bound).collect())
    }

    fn max_encoded_bytes(&self, shape: BlockShape) -> Result<usize> {
        Ok(shape.values()? * 2)
    }
}

fn halves(bytes: &[u8], shape: BlockShape) -> Result<&[[u8; 2]]> {
    let expected = Bf16.max_encoded_bytes(shape)?;
    if bytes.len() == expected {
        return Ok(bytes.as_chunks::<2>().0);
    }
    let BlockShape { rows, width } = shape;
    Err(Error::Invalid(format!("codec `bf16`: expected {expected} bytes for {rows} rows of {width} values, got {}", bytes.len())))
}

fn widened(half: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(half)) << 16)
}

/// The nearest bfloat16, ties to even. What is finite stays so; the bits of NaN mean nothing.
#[inline]
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = (magnitude + 0x7fff + ((magnitude >> 16) & 1)) >> 16;
    let largest = if magnitude < INFINITY { 0x7f7f } else { 0x7f80 };
    ((bits >> 16) & 0x8000 | rounded.min(largest)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even() {
        for (value, half) in [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (-0.0, 0x8000),
            (f32::from_bits(1), 0),
        ] {
            assert_eq!(round(value), half, "{value:e}");
        }
    }

    #[test]
    fn finite_numbers_stay_finite_and_infinities_are_kept() {
        let shape = BlockShape { rows: 1, width: 4 };
        let encoded = Bf16.encode_values(&[f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY], shape).expect("no NaN");
        let decoded = Bf16.decode_values(&encoded, shape).expect("its own bytes");
        let largest = f32::from_bits(0x7f7f_0000);
        assert_eq!(decoded, [largest, -largest, f32::INFINITY, f32::NEG_INFINITY]);
    }

    #[test]
    fn nan_is_named_by_its_place() {
        let shape = BlockShape { rows: 2, width: 3 };
        let error = Bf16.encode_values(&[0.0, f32::INFINITY, 2.0, 3.0, -f32::NAN, 5.0], shape).expect_err("NaN");
        assert_eq!(error.to_string(), "codec `bf16` cannot hold NaN at row 1, column 1");
    }
}
