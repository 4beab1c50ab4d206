//! What `int8` and `int4` share: integers of a few bits, and a scale for every few values of a row.
//!
//! A block of neighbours `v` of one row shares the scale `s = max|v| / q` with `q` the largest integer; what an integer stands for, in
//! scales, is the codec's own affair: itself for `int4`, whose values are off by at most `s / 2`. Encoded: all scales (bfloat16, row by
//! row), then all integers.
//!
//! A scale is rounded up to the next bfloat16, which makes it less than 1/128 larger and saves two bytes a block: with 64 values of 8
//! bits a block, 1.031 bytes a value and not 1.063.

use std::fmt::Debug;
use std::marker::PhantomData;

use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Error, Result};

use super::place;

/// The most values that may share a scale.
pub(super) const LARGEST_BLOCK: usize = 64;

/// Bytes of a scale.
const SCALE_BYTES: usize = 2;

/// How the integers of one block are laid out.
pub trait Integers: Debug + Copy + Send + Sync + 'static {
    /// The codec's name.
    const NAME: &'static str;
    /// The largest integer; the smallest is its negative.
    const LARGEST: i8;

    /// The bytes that this many integers take.
    fn bytes(values: usize) -> usize;

    /// Writes the integer of each value.
    fn write(values: &[f32], scale: f32, bytes: &mut [u8]);

    /// Gives what each integer stands for, which is finite.
    fn read(bytes: &[u8], scale: f32, values: &mut [f32]);

    /// How far a value may be off, but for the rounding of floats.
    fn bound(_value: f32, scale: f32) -> f32 {
        // Half a step; the quotient rounds too.
        scale * 0.500_01
    }
}

/// Symmetric quantisation with a scale for each block of a row.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<I> {
    block: usize,
    integers: PhantomData<I>,
}

/// Where the parts of an encoded block lie.
struct Layout {
    scales: usize,
    row_bytes: usize,
    total: usize,
}

impl<I: Integers> Scaled<I> {
    /// Blocks of this many values.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not 1 to 64.
    pub(super) fn new(block: usize) -> Result<Self> {
        if (1..=LARGEST_BLOCK).contains(&block) {
            return Ok(Self { block, integers: PhantomData });
        }
        Err(Error::config(format!("codec `{}`, key `block`", I::NAME), format!("expected 1 to {LARGEST_BLOCK}, got {block}")))
    }

    fn layout(self, shape: BlockShape) -> Result<Layout> {
        shape.values()?;
        // Neither product can overflow: there are no more scales, and no more bytes of integers, than values.
        let scales = shape.rows * shape.width.div_ceil(self.block);
        let row_bytes = shape.width / self.block * I::bytes(self.block) + I::bytes(shape.width % self.block);
        let total = scales.checked_mul(SCALE_BYTES).and_then(|bytes| bytes.checked_add(shape.rows * row_bytes));
        let total = total.ok_or_else(|| Error::Invalid(format!("codec `{}`: the block is too large", I::NAME)))?;
        Ok(Layout { scales, row_bytes, total })
    }

    /// The layout of a block's bytes, which must be as many.
    fn check(self, bytes: &[u8], shape: BlockShape) -> Result<Layout> {
        let layout = self.layout(shape)?;
        if bytes.len() == layout.total {
            return Ok(layout);
        }
        let BlockShape { rows, width } = shape;
        Err(Error::Invalid(format!(
            "codec `{}`: expected {} bytes for {rows} rows of {width} values in blocks of {}, got {}",
            I::NAME,
            layout.total,
            self.block,
            bytes.len()
        )))
    }
}

impl<I: Integers> ActivationCodec for Scaled<I> {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }

    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        let layout = self.layout(shape)?;
        let mut encoded = vec![0; layout.total];
        let (scale_bytes, bytes) = encoded.split_at_mut(layout.scales * SCALE_BYTES);
        let mut scale_words = scale_bytes.as_chunks_mut::<SCALE_BYTES>().0.iter_mut();
        let rows = values.chunks(shape.width.max(1)).zip(bytes.chunks_mut(layout.row_bytes.max(1)));
        for (row, (values, bytes)) in rows.enumerate() {
            let blocks = values.chunks(self.block).zip(bytes.chunks_mut(I::bytes(self.block)));
            for (at, (values, bytes)) in blocks.enumerate() {
                let scale =
                    scale_of::<I>(values).ok_or_else(|| place::not_held(I::NAME, values, row, at * self.block, |v| !v.is_finite()))?;
                if let Some(word) = scale_words.next() {
                    *word = ((scale.to_bits() >> 16) as u16).to_le_bytes();
                }
                if scale > 0.0 {
                    I::write(values, scale, bytes);
                }
            }
        }
        Ok(encoded)
    }

    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        self.check(bytes, shape)?;
        let mut values = vec![0.0; shape.values()?];
        self.decode_rows(bytes, shape, 0, &mut values)?;
        Ok(values)
    }

    fn decode_rows(&self, bytes: &[u8], shape: BlockShape, first_row: usize, values: &mut [f32]) -> Result<()> {
        shape.range_of(first_row, values.len())?;
        let layout = self.check(bytes, shape)?;
        let (scale_bytes, bytes) = bytes.split_at(layout.scales * SCALE_BYTES);
        let scales = scale_bytes.as_chunks::<SCALE_BYTES>().0.chunks(shape.width.div_ceil(self.block).max(1)).skip(first_row);
        let rows = scales.zip(bytes.chunks(layout.row_bytes.max(1)).skip(first_row)).zip(values.chunks_mut(shape.width.max(1)));
        for (row, ((scales, bytes), values)) in rows.enumerate() {
            let blocks = bytes.chunks(I::bytes(self.block)).zip(values.chunks_mut(self.block));
            for (word, (bytes, values)) in scales.iter().zip(blocks) {
                let scale = f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16);
                if !scale.is_finite() || scale.is_sign_negative() {
                    let row = first_row + row;
                    return Err(Error::Invalid(format!("codec `{}`: row {row} has the scale {scale}, which is none", I::NAME)));
                }
                I::read(bytes, scale, values);
            }
        }
        Ok(())
    }

    fn has_row_access(&self) -> bool {
        true
    }

    fn error_bounds(&self, values: &[f32], shape: BlockShape) -> Result<Vec<f32>> {
        let mut bounds = Vec::with_capacity(values.len());
        for row in values.chunks(shape.width.max(1)) {
            for block in row.chunks(self.block) {
                let scale = scale_of::<I>(block).unwrap_or(f32::INFINITY);
                // The product rounds too, and the sign of zero is not kept.
                bounds.extend(block.iter().map(|value| I::bound(*value, scale) + value.abs() * 4.0 * f32::EPSILON + f32::from_bits(1)));
            }
        }
        Ok(bounds)
    }

    fn max_encoded_bytes(&self, shape: BlockShape) -> Result<usize> {
        Ok(self.layout(shape)?.total)
    }
}

/// `max|v|` over the largest integer, rounded up to a bfloat16, so that no quotient exceeds it; nothing when a value is NaN or infinite.
fn scale_of<I: Integers>(values: &[f32]) -> Option<f32> {
    // Without their sign the bits of floats are ordered as the floats are, with infinity and NaN on top.
    let largest = values.iter().map(|value| (value.to_bits() & 0x7fff_ffff) as i32).fold(0, i32::max);
    let largest = f32::from_bits(largest as u32);
    if !largest.is_finite() {
        return None;
    }
    let steps = f64::from(I::LARGEST);
    let scale = (f64::from(largest) / steps) as f32;
    let scale = if f64::from(scale) * steps < f64::from(largest) { scale.next_up() } else { scale };
    // Adding to the bits of a positive float gives a larger one. The largest float over an integer is far from infinity.
    Some(f32::from_bits((scale.to_bits() + 0xffff) & 0xffff_0000))
}

/// The exponent at which a float's last bit counts ones: adding it rounds to the nearest integer (ties to even), whose
/// two's complement then stands in the lowest bits. Unlike `f32::round`, every x86-64 vector unit does it.
pub(super) const ROUND: f32 = 12_582_912.0;

/// `value / scale` as the nearest integer, in two's complement.
#[inline]
pub(super) fn nearest(value: f32, scale: f32) -> u8 {
    (value / scale + ROUND).to_bits() as u8
}

/// An integer times the scale.
#[inline]
pub(super) fn restored(integer: i8, scale: f32) -> f32 {
    // The largest integer times the scale of the largest float may round to infinity.
    (f32::from(integer) * scale).clamp(f32::MIN, f32::MAX)
}
