//! `none`: the values as they are, 32-bit little endian.

use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Construct, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

register!(codec "none" => UncompressedConfig, "32-bit floats as they are: 4 bytes a value, exact");

/// Config of the codec `none`; it has no settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UncompressedConfig {}

impl Construct for UncompressedConfig {
    type Output = Uncompressed;

    fn construct(&self) -> Result<Uncompressed> {
        Ok(Uncompressed)
    }
}

/// Little-endian 32-bit floats, row by row. Bit for bit, NaN payloads included.
#[derive(Debug, Clone, Copy)]
pub struct Uncompressed;

impl ActivationCodec for Uncompressed {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], _: BlockShape) -> Result<Vec<u8>> {
        if cfg!(target_endian = "little") {
            return Ok(bytemuck::cast_slice(values).to_vec());
        }
        Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let words = words(bytes, shape)?;
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    fn decode_rows(&self, bytes: &[u8], shape: BlockShape, first_row: usize, values: &mut [f32]) -> Result<()> {
        let range = shape.range_of(first_row, values.len())?;
        let words = &words(bytes, shape)?[range];
        values.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
        Ok(())
    }

    fn has_row_access(&self) -> bool {
        true
    }
}

fn words(bytes: &[u8], shape: BlockShape) -> Result<&[[u8; 4]]> {
    let expected = shape.values()?;
    let (words, rest) = bytes.as_chunks::<4>();
    if words.len() == expected && rest.is_empty() {
        return Ok(words);
    }
    Err(Error::Invalid(format!(
        "codec `none`: expected {} bytes for {} rows of {} values, got {}",
        expected * 4,
        shape.rows,
        shape.width,
        bytes.len()
    )))
}
