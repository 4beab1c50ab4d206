//! `bf16`: each value as a bfloat16, the upper half of a 32-bit float. Half the size of `none`, three digits, full range.

use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Construct, Error, Result, register};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(codec "bf16" => Bf16Config, "bfloat16: half the size, relative error at most 1/256");

/// Settings of `bf16`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bf16Config {}

/// The codec.
#[derive(Debug, Clone, Copy)]
pub struct Bf16;

impl Construct for Bf16Config {
    type Output = Bf16;

    fn construct(&self) -> Result<Bf16> {
        Ok(Bf16)
    }
}

impl ActivationCodec for Bf16 {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], _: BlockShape) -> Result<Vec<u8>> {
        if let Some(place) = values.iter().position(|value| value.is_nan()) {
            return Err(Error::Invalid(format!("codec `bf16`: value {place} of the block is not a number")));
        }
        Ok(values.iter().flat_map(|value| round(*value).to_le_bytes()).collect())
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let expected = 2 * shape.values()?;
        if bytes.len() != expected {
            return Err(Error::Invalid(format!("codec `bf16`: a block of {expected} bytes was expected, {} came", bytes.len())));
        }
        Ok(bytes.chunks_exact(2).map(|pair| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16)).collect())
    }

    fn error_bounds(&self, values: &[f32], _: BlockShape) -> Result<Vec<f32>> {
        // Eight bits of mantissa; below the smallest normal number the step is constant.
        Ok(values.iter().map(|value| if value.is_finite() { value.abs() / 256.0 + f32::MIN_POSITIVE / 128.0 } else { 0.0 }).collect())
    }

    fn max_encoded_bytes(&self, shape: BlockShape) -> Result<usize> {
        Ok(2 * shape.values()?)
    }
}

/// The nearest finite bfloat16, ties to even; infinities stay.
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    if value.is_infinite() {
        return sign | 0x7f80;
    }
    let magnitude = bits & 0x7fff_ffff;
    let rounded = (magnitude + 0x7fff + ((magnitude >> 16) & 1)) >> 16;
    sign | (rounded as u16).min(0x7f7f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even() {
        assert_eq!(round(1.0), 0x3f80);
        assert_eq!(round(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(round(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(round(f32::NEG_INFINITY), 0xff80);
        assert_eq!(round(f32::MAX), 0x7f7f);
    }
}
