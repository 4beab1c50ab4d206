//! `int4`: two values a byte, and a scale for every few values of a row.

use circuitlab_core::{Construct, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scaled::{Integers, Scaled, nearest, restored};

register!(codec "int4" => Int4Config, "4-bit integers with a scale for each block of a row: about 0.56 bytes a value");

/// Config of the codec `int4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Int4Config {
    /// How many neighbours of a row share a scale, 1 to 64. Fewer is more exact and larger; an odd number wastes half a
    /// byte a block. Default: 32.
    pub block: usize,
}

impl Default for Int4Config {
    fn default() -> Self {
        Self { block: 32 }
    }
}

impl Construct for Int4Config {
    type Output = Int4;

    fn construct(&self) -> Result<Int4> {
        Int4::new(self.block)
    }
}

/// Symmetric quantisation to 4 bits, -7 to 7.
pub type Int4 = Scaled<Nibbles>;

/// Half a byte an integer: the first half of a block is in the lower halves of its bytes, the second in the upper ones, so
/// that both are runs of neighbours, which vector units read and write without shuffling.
#[derive(Debug, Clone, Copy)]
pub struct Nibbles;

impl Integers for Nibbles {
    const NAME: &'static str = "int4";
    const LARGEST: i8 = 7;

    fn bytes(values: usize) -> usize {
        values.div_ceil(2)
    }

    fn write(values: &[f32], scale: f32, bytes: &mut [u8]) {
        let (lower, upper) = values.split_at(bytes.len().min(values.len()));
        for (byte, value) in bytes.iter_mut().zip(lower) {
            *byte = nearest(*value, scale) & 0x0f;
        }
        for (byte, value) in bytes.iter_mut().zip(upper) {
            *byte |= nearest(*value, scale) << 4;
        }
    }

    fn read(bytes: &[u8], scale: f32, values: &mut [f32]) {
        let (lower, upper) = values.split_at_mut(bytes.len().min(values.len()));
        for (value, byte) in lower.iter_mut().zip(bytes) {
            *value = restored((byte << 4) as i8 >> 4, scale);
        }
        for (value, byte) in upper.iter_mut().zip(bytes) {
            *value = restored(*byte as i8 >> 4, scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{ActivationCodec, BlockShape};

    use super::*;

    fn round_trip(block: usize, values: &[f32], shape: BlockShape) -> (Vec<u8>, Vec<f32>) {
        let codec = Int4::new(block).expect("in range");
        let encoded = codec.encode_values(values, shape).expect("finite");
        let decoded = codec.decode_values(&encoded, shape).expect("its own bytes");
        (encoded, decoded)
    }

    #[test]
    fn two_values_share_a_byte_and_odd_ends_have_their_own() {
        let values = [7.0, -7.0, 1.0, -2.0, 3.0, 14.0, 0.0, -4.0, 6.0, 2.0];
        let (encoded, decoded) = round_trip(32, &values, BlockShape { rows: 2, width: 5 });
        assert_eq!(encoded[..4], [&1.0_f32.to_le_bytes()[2..], &2.0_f32.to_le_bytes()[2..]].concat());
        assert_eq!(encoded[4..], [0xe7, 0x39, 0x01, 0x37, 0x10, 0x0e]);
        assert_eq!(decoded, values);
    }

    #[test]
    fn the_ends_of_the_float_range_come_back_finite_and_close() {
        let shape = BlockShape { rows: 1, width: 1 };
        for value in [f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(3), f32::from_bits(10), 1e-44] {
            let decoded = round_trip(32, &[value], shape).1[0];
            let bound = Int4::new(32).expect("in range").error_bounds(&[value], shape).expect("finite")[0];
            assert!((f64::from(decoded) - f64::from(value)).abs() <= f64::from(bound), "{value:e} came back as {decoded:e}");
        }
    }

    #[test]
    fn what_it_cannot_hold_is_named() {
        let shape = BlockShape { rows: 2, width: 3 };
        let codec = Int4::new(2).expect("in range");
        let error = codec.encode_values(&[0.0, 1.0, 2.0, 3.0, 4.0, f32::INFINITY], shape).expect_err("infinite");
        assert_eq!(error.to_string(), "codec `int4` cannot hold inf at row 1, column 2");
    }

    #[test]
    fn hostile_scales_and_cut_bytes_are_refused() {
        let shape = BlockShape { rows: 1, width: 3 };
        let codec = Int4::new(32).expect("in range");
        for scale in [f32::NAN, f32::INFINITY, -1.0] {
            let bytes = [&scale.to_le_bytes()[2..], &[0x77, 0x07]].concat();
            let error = codec.decode_values(&bytes, shape).expect_err("no scale").to_string();
            assert!(error.contains("row 0 has the scale"), "{error}");
        }
        let error = codec.decode_values(&[0; 5], shape).expect_err("cut").to_string();
        assert_eq!(error, "codec `int4`: expected 4 bytes for 1 rows of 3 values in blocks of 32, got 5");
        // -8 is no integer of this codec's own; it stays finite all the same.
        let bytes = [&f32::MAX.to_le_bytes()[2..], &[0x88, 0x08]].concat();
        assert!(codec.decode_values(&bytes, shape).expect("a scale").iter().all(|value| value.is_finite()));
    }

    #[test]
    fn block_sizes_out_of_range_are_refused() {
        for block in [0, 65] {
            let error = Int4Config { block }.construct().expect_err("out of range");
            assert_eq!(error.to_string(), format!("codec `int4`, key `block`: expected 1 to 64, got {block}"));
        }
    }
}
