//! Guarded codecs.

use super::guarded::Guarded;
use crate::{ActivationCodec, BlockShape, CodecInput, Result};

/// What a codec says of itself, once.
struct Facts {
    input: CodecInput,
    has_row_access: bool,
}

/// Guards a codec.
///
/// # Errors
/// A panic while it says what it takes.
pub fn codec<T: ActivationCodec + 'static>(what: &'static str, made: T) -> Result<Box<dyn ActivationCodec>> {
    Ok(Box::new(Guarded::new(what, made).ask(|codec| Facts { input: codec.input(), has_row_access: codec.has_row_access() })?))
}

impl<T: ActivationCodec> ActivationCodec for Guarded<T, Facts> {
    fn input(&self) -> CodecInput {
        self.facts.input
    }

    fn has_row_access(&self) -> bool {
        self.facts.has_row_access
    }

    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        self.call(|codec| codec.encode_values(values, shape))
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        self.call(|codec| codec.decode_values(bytes, shape))
    }

    fn decode_rows(&self, bytes: &[u8], shape: BlockShape, first_row: usize, values: &mut [f32]) -> Result<()> {
        self.call(|codec| codec.decode_rows(bytes, shape, first_row, values))
    }

    fn error_bounds(&self, values: &[f32], shape: BlockShape) -> Result<Vec<f32>> {
        self.call(|codec| codec.error_bounds(values, shape))
    }

    fn max_encoded_bytes(&self, shape: BlockShape) -> Result<usize> {
        self.call(|codec| codec.max_encoded_bytes(shape))
    }

    fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.call(|codec| codec.encode_bytes(bytes))
    }

    fn decode_bytes(&self, bytes: &[u8], limit_bytes: usize) -> Result<Vec<u8>> {
        self.call(|codec| codec.decode_bytes(bytes, limit_bytes))
    }

    fn decode_bytes_into(&self, bytes: &[u8], limit_bytes: usize, decoded: &mut Vec<u8>) -> Result<()> {
        self.call(|codec| codec.decode_bytes_into(bytes, limit_bytes, decoded))
    }
}
