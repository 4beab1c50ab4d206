//! `zstd`: bytes made smaller, without loss.

use circuitlab_core::{ActivationCodec, CodecInput, Construct, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};

register!(codec "zstd" => ZstdConfig, "Zstandard compression of the bytes before it, exact");

/// Config of the codec `zstd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ZstdConfig {
    /// How hard it tries, 1 (fast) to 22 (small). Default: 3.
    pub level: i32,
}

impl Default for ZstdConfig {
    fn default() -> Self {
        Self { level: 3 }
    }
}

impl Construct for ZstdConfig {
    type Output = Zstd;

    fn construct(&self) -> Result<Zstd> {
        if (1..=22).contains(&self.level) {
            return Ok(Zstd { level: self.level });
        }
        Err(Error::config("codec `zstd`, key `level`", format!("expected 1 to 22, got {}", self.level)))
    }
}

/// One Zstandard frame, which states its content's size.
#[derive(Debug, Clone, Copy)]
pub struct Zstd {
    level: i32,
}

impl ActivationCodec for Zstd {
    fn input(&self) -> CodecInput {
        CodecInput::Bytes
    }

    fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        Compressor::new(self.level).and_then(|mut zstd| zstd.compress(bytes)).map_err(|error| refused(&error))
    }

    fn decode_bytes(&self, bytes: &[u8], limit_bytes: usize) -> Result<Vec<u8>> {
        // Allocates what the frame states, or the limit when it states nothing, and refuses more than the limit before.
        Decompressor::new().and_then(|mut zstd| zstd.decompress(bytes, limit_bytes)).map_err(|error| refused(&error))
    }

    fn decode_bytes_into(&self, bytes: &[u8], limit_bytes: usize, decoded: &mut Vec<u8>) -> Result<()> {
        // It writes into a vector's capacity and does not make it larger. Where that is not enough, the way above makes a
        // vector of the right size, which is enough the next time.
        decoded.clear();
        let fits = decoded.capacity() >= limit_bytes;
        if fits
            && Decompressor::new().and_then(|mut zstd| zstd.decompress_to_buffer(bytes, decoded)).is_ok()
            && decoded.len() <= limit_bytes
        {
            return Ok(());
        }
        *decoded = self.decode_bytes(bytes, limit_bytes)?;
        Ok(())
    }
}

fn refused(error: &std::io::Error) -> Error {
    Error::Invalid(format!("codec `zstd`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_states_too_much_is_refused() {
        let codec = Zstd { level: 3 };
        let bomb = codec.encode_bytes(&vec![0; 1 << 20]).expect("compresses");
        assert!(bomb.len() < 200);
        assert!(codec.decode_bytes(&bomb, 1000).is_err());
        assert_eq!(codec.decode_bytes(&bomb, 1 << 20).expect("fits").len(), 1 << 20);
    }

    #[test]
    fn levels_out_of_range_are_refused() {
        for level in [0, 23] {
            let error = ZstdConfig { level }.construct().expect_err("out of range");
            assert_eq!(error.to_string(), format!("codec `zstd`, key `level`: expected 1 to 22, got {level}"));
        }
    }
}
