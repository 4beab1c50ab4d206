//! Guarded codecs.

use super::guarded::Guarded;
use crate::{ActivationCodec, BlockShape, CodecInput, Result};

/// Guards a codec.
///
/// # Errors
/// A panic while it says what it takes.
pub fn codec<T: ActivationCodec + 'static>(what: &'static str, made: T) -> Result<Box<dyn ActivationCodec>> {
    Ok(Box::new(Guarded::new(what, made).ask(T::input)?))
}

impl<T: ActivationCodec> ActivationCodec for Guarded<T, CodecInput> {
    fn input(&self) -> CodecInput {
        self.facts
    }

    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        self.call(|codec| codec.encode_values(values, shape))
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        self.call(|codec| codec.decode_values(bytes, shape))
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
}
