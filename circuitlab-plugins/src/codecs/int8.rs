//! `int8`: one signed byte a value, and a scale for every few values of a row.
//!
//! A block of up to 64 neighbours `v` of one row shares the scale `s = max|v| / 127`; `v` becomes `round(v / s)` and comes
//! back as `s` times that, so it is off by at most `s / 2`. Encoded: all scales (f32, row by row), then all bytes.

use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Construct, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(codec "int8" => Int8Config, "8-bit integers with a scale for each block of a row: about 1.06 bytes a value");

const LARGEST_BLOCK: usize = 64;

/// Config of the codec `int8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Int8Config {
    /// How many neighbours of a row share a scale, 1 to 64. Fewer is more exact and larger. Default: 64.
    pub block: usize,
}

impl Default for Int8Config {
    fn default() -> Self {
        Self { block: LARGEST_BLOCK }
    }
}

impl Construct for Int8Config {
    type Output = Int8;

    fn construct(&self) -> Result<Int8> {
        if (1..=LARGEST_BLOCK).contains(&self.block) {
            return Ok(Int8 { block: self.block });
        }
        Err(Error::config("codec `int8`, key `block`", format!("expected 1 to {LARGEST_BLOCK}, got {}", self.block)))
    }
}

/// Symmetric quantisation to 8 bits.
#[derive(Debug, Clone, Copy)]
pub struct Int8 {
    block: usize,
}

impl Int8 {
    /// The number of scales, and of all bytes, of a block of this shape.
    fn layout(self, shape: BlockShape) -> Result<(usize, usize)> {
        let values = shape.values()?;
        let scales = shape.rows * shape.width.div_ceil(self.block);
        let bytes = scales.checked_mul(4).and_then(|bytes| bytes.checked_add(values));
        bytes.map(|bytes| (scales, bytes)).ok_or_else(|| Error::Invalid("codec `int8`: the block is too large".to_owned()))
    }
}

impl ActivationCodec for Int8 {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        let (scales, total) = self.layout(shape)?;
        let mut encoded = vec![0; total];
        let (scale_bytes, bytes) = encoded.split_at_mut(scales * 4);
        let mut scale_words = scale_bytes.as_chunks_mut::<4>().0.iter_mut();
        let width = shape.width.max(1);
        for (row, (values, bytes)) in values.chunks(width).zip(bytes.chunks_mut(width)).enumerate() {
            for (at, (values, bytes)) in values.chunks(self.block).zip(bytes.chunks_mut(self.block)).enumerate() {
                let scale = scale_of(values).ok_or_else(|| not_finite(values, row, at * self.block))?;
                if let Some(word) = scale_words.next() {
                    *word = scale.to_le_bytes();
                }
                quantise(values, scale, bytes);
            }
        }
        Ok(encoded)
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let (scales, total) = self.layout(shape)?;
        if bytes.len() != total {
            return Err(Error::Invalid(format!(
                "codec `int8`: expected {total} bytes for {} rows of {} values in blocks of {}, got {}",
                shape.rows,
                shape.width,
                self.block,
                bytes.len()
            )));
        }
        let (scale_bytes, bytes) = bytes.split_at(scales * 4);
        let mut scales = scale_bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
        let mut values = vec![0.0; bytes.len()];
        let width = shape.width.max(1);
        for (row, (bytes, values)) in bytes.chunks(width).zip(values.chunks_mut(width)).enumerate() {
            for (bytes, values) in bytes.chunks(self.block).zip(values.chunks_mut(self.block)) {
                let scale = scales.next().unwrap_or(f32::NAN);
                if !scale.is_finite() || scale.is_sign_negative() {
                    return Err(Error::Invalid(format!("codec `int8`: row {row} has the scale {scale}, which is none")));
                }
                restore(bytes, scale, values);
            }
        }
        Ok(values)
    }

    fn error_bounds(&self, values: &[f32], shape: BlockShape) -> Result<Vec<f32>> {
        let mut bounds = Vec::with_capacity(values.len());
        for row in values.chunks(shape.width.max(1)) {
            for block in row.chunks(self.block) {
                let scale = scale_of(block).unwrap_or(f32::INFINITY);
                // Half a step; the quotient and the product round too; and the sign of zero is not kept.
                bounds.extend(block.iter().map(|value| scale * 0.500_01 + value.abs() * f32::EPSILON + f32::from_bits(1)));
            }
        }
        Ok(bounds)
    }

    fn max_encoded_bytes(&self, shape: BlockShape) -> Result<usize> {
        Ok(self.layout(shape)?.1)
    }
}

/// `max|v| / 127`, rounded so that no quotient exceeds 127; nothing when a value is NaN or infinite.
fn scale_of(values: &[f32]) -> Option<f32> {
    // Without their sign the bits of floats are ordered as the floats are, with infinity and NaN on top.
    let largest = values.iter().map(|value| (value.to_bits() & 0x7fff_ffff) as i32).fold(0, i32::max);
    let largest = f32::from_bits(largest as u32);
    if !largest.is_finite() {
        return None;
    }
    let scale = (f64::from(largest) / 127.0) as f32;
    // Where the scale is denormal, rounding down could cost more than half a step, or the whole block.
    Some(if f64::from(scale) * 127.0 < f64::from(largest) { scale.next_up() } else { scale })
}

/// The exponent at which a float's last bit counts ones: adding it rounds to the nearest integer (ties to even), whose
/// two's complement then stands in the lowest bits. Unlike `f32::round`, every x86-64 vector unit does it.
const ROUND: f32 = 12_582_912.0;

fn quantise(values: &[f32], scale: f32, bytes: &mut [u8]) {
    if scale == 0.0 {
        bytes.fill(0);
        return;
    }
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = (value / scale + ROUND).to_bits() as u8;
    }
}

fn restore(bytes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, byte) in values.iter_mut().zip(bytes) {
        // 127 times the scale of the largest float may round to infinity.
        *value = (f32::from(*byte as i8) * scale).clamp(f32::MIN, f32::MAX);
    }
}

fn not_finite(values: &[f32], row: usize, first_column: usize) -> Error {
    let place = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    Error::Invalid(format!("codec `int8` cannot hold {} at row {row}, column {}", values[place], first_column + place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: BlockShape = BlockShape { rows: 2, width: 3 };

    #[test]
    fn scales_come_first_and_belong_to_rows() {
        let encoded = Int8 { block: 64 }.encode_values(&[1.27, -0.64, 0.0, 0.0, 0.0, 254.0], SHAPE).expect("finite");
        assert_eq!(encoded.len(), 8 + 6);
        assert_eq!(&encoded[4..8], 2.0_f32.to_le_bytes());
        assert_eq!(encoded[8..].iter().map(|byte| *byte as i8).collect::<Vec<_>>(), [127, -64, 0, 0, 0, 127]);
    }

    #[test]
    fn what_it_cannot_hold_is_named() {
        let error = Int8 { block: 2 }.encode_values(&[0.0, 1.0, 2.0, 3.0, 4.0, f32::NAN], SHAPE).expect_err("NaN");
        assert_eq!(error.to_string(), "codec `int8` cannot hold NaN at row 1, column 2");
        let error = Int8 { block: 64 }.encode_values(&[0.0, f32::NEG_INFINITY, 2.0, 3.0, 4.0, 5.0], SHAPE).expect_err("infinite");
        assert_eq!(error.to_string(), "codec `int8` cannot hold -inf at row 0, column 1");
    }

    #[test]
    fn the_ends_of_the_float_range_come_back_finite_and_close() {
        for value in [f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(200), 1e-44] {
            let codec = Int8 { block: 64 };
            let shape = BlockShape { rows: 1, width: 1 };
            let encoded = codec.encode_values(&[value], shape).expect("finite");
            let decoded = codec.decode_values(&encoded, shape).expect("its own bytes")[0];
            let bound = codec.error_bounds(&[value], shape).expect("finite")[0];
            assert!((f64::from(decoded) - f64::from(value)).abs() <= f64::from(bound), "{value:e}");
        }
    }

    #[test]
    fn block_sizes_out_of_range_are_refused() {
        for block in [0, 65] {
            let error = Int8Config { block }.construct().expect_err("out of range");
            assert_eq!(error.to_string(), format!("codec `int8`, key `block`: expected 1 to 64, got {block}"));
        }
    }
}
