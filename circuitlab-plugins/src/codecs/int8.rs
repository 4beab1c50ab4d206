//! `int8`: one signed byte a value, and a scale for every few values of a row.
//!
//! The levels are denser near zero, where most values of a block lie once one of them is much larger: the integer `c` stands for
//! `s (0.6 c + 0.4 c^3 / 127^2)`, so that steps grow from 0.6 of an even one to 1.8 of it at the largest value, which is met exactly.
//! On MLP outputs this halves the squared error of even steps, at the same size.

use circuitlab_core::{Construct, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scaled::{Integers, LARGEST_BLOCK, ROUND, Scaled};

register!(codec "int8" => Int8Config, "8-bit integers with a scale for each block of a row: about 1.03 bytes a value");

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
        Int8::new(self.block)
    }
}

/// Quantisation to 8 bits, -127 to 127, symmetric about zero.
pub type Int8 = Scaled<Bytes>;

/// One byte an integer.
#[derive(Debug, Clone, Copy)]
pub struct Bytes;

impl Integers for Bytes {
    const NAME: &'static str = "int8";
    const LARGEST: i8 = 127;

    fn bytes(values: usize) -> usize {
        values
    }

    fn write(values: &[f32], scale: f32, bytes: &mut [u8]) {
        for (byte, value) in bytes.iter_mut().zip(values) {
            *byte = (level(*value / scale) + ROUND).to_bits() as u8;
        }
    }

    fn read(bytes: &[u8], scale: f32, values: &mut [f32]) {
        let levels = values.iter_mut().zip(bytes.iter().map(|byte| height(f32::from(*byte as i8)) * scale));
        if scale < SAFE_SCALE {
            levels.for_each(|(value, level)| *value = level);
        } else {
            levels.for_each(|(value, level)| *value = level.clamp(f32::MIN, f32::MAX));
        }
    }

    fn bound(value: f32, scale: f32) -> f32 {
        if scale == 0.0 {
            return 0.0;
        }
        // Half of the widest step beside the level.
        let level = level(value / scale).abs() + 1.0;
        scale * 0.501 * (LINEAR + 3.0 * CUBIC * level * level)
    }
}

const LINEAR: f32 = 0.6;
const CUBIC: f32 = 0.4 / (127.0 * 127.0);

/// Below it, no level times the scale is infinite.
const SAFE_SCALE: f32 = f32::MAX / 130.0;

/// What an integer stands for, in scales: odd, growing, and 127 at 127.
#[inline]
fn height(integer: f32) -> f32 {
    integer * (LINEAR + CUBIC * integer * integer)
}

/// The inverse of [`height`], as a fraction, by Newton's method: from above it falls to the root without passing it, and the first step
/// leads above.
#[inline]
fn level(height_in_scales: f32) -> f32 {
    let mut level = height_in_scales;
    for _ in 0..5 {
        level -= (height(level) - height_in_scales) / (LINEAR + 3.0 * CUBIC * level * level);
    }
    level
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{ActivationCodec, BlockShape};

    use super::*;

    const SHAPE: BlockShape = BlockShape { rows: 2, width: 3 };

    fn codec(block: usize) -> Int8 {
        Int8::new(block).expect("in range")
    }

    #[test]
    fn scales_come_first_and_belong_to_rows() {
        let encoded = codec(64).encode_values(&[1.27, -0.64, 0.0, 0.0, 0.0, 254.0], SHAPE).expect("finite");
        assert_eq!(encoded.len(), 4 + 6);
        assert_eq!(&encoded[2..4], &2.0_f32.to_le_bytes()[2..]);
        assert_eq!(encoded[4..].iter().map(|byte| *byte as i8).collect::<Vec<_>>(), [127, -83, 0, 0, 0, 127]);
    }

    #[test]
    fn every_height_finds_its_nearest_level() {
        for integer in -127_i8..=127 {
            let (here, next) = (height(f32::from(integer)), height(f32::from(integer) + 1.0));
            assert!((level(here) - f32::from(integer)).abs() < 1e-3, "{integer}");
            for part in [0.1_f32, 0.45, 0.55, 0.9].into_iter().filter(|_| integer < 127) {
                let between = here + (next - here) * part;
                let found = height((level(between) + ROUND) - ROUND);
                assert!((found - between).abs() <= (between - here).min(next - between) * 1.03 + 1e-4, "{integer} and {part}");
            }
        }
    }

    #[test]
    fn what_it_cannot_hold_is_named() {
        let error = codec(2).encode_values(&[0.0, 1.0, 2.0, 3.0, 4.0, f32::NAN], SHAPE).expect_err("NaN");
        assert_eq!(error.to_string(), "codec `int8` cannot hold NaN at row 1, column 2");
        let error = codec(64).encode_values(&[0.0, f32::NEG_INFINITY, 2.0, 3.0, 4.0, 5.0], SHAPE).expect_err("infinite");
        assert_eq!(error.to_string(), "codec `int8` cannot hold -inf at row 0, column 1");
    }

    #[test]
    fn the_ends_of_the_float_range_come_back_finite_and_close() {
        for value in [f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(200), 1e-44] {
            let shape = BlockShape { rows: 1, width: 1 };
            let encoded = codec(64).encode_values(&[value], shape).expect("finite");
            let decoded = codec(64).decode_values(&encoded, shape).expect("its own bytes")[0];
            let bound = codec(64).error_bounds(&[value], shape).expect("finite")[0];
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
