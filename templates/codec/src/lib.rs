//! `bfp8`: block floating point. Neighbours of a row share one exponent, and each value is a signed byte.
use circuitlab_core::{ActivationCodec, BlockShape, CodecInput, Construct, Error, Result, register};

register!(codec "bfp8" => Bfp8Config, "block floating point: a shared power of two, a byte a value");
circuitlab_core::export_plugin!();

/// Settings of `bfp8`.
#[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bfp8Config {
    /// How many neighbours of a row share an exponent, 1 to 1024. Default: 32.
    pub block: usize,
}
impl Default for Bfp8Config {
    fn default() -> Self {
        Self { block: 32 }
    }
}
impl Construct for Bfp8Config {
    type Output = Bfp8;
    fn construct(&self) -> Result<Bfp8> {
        let wrong = || Error::config("codec `bfp8`, key `block`", format!("expected 1 to 1024, got {}", self.block));
        (1..=1024).contains(&self.block).then_some(Bfp8(self.block)).ok_or_else(wrong)
    }
}

/// A block is its largest exponent as `f32` has it, one byte, then each value in steps of 1/64 of that power of two.
#[derive(Debug)]
pub struct Bfp8(usize);

fn step(exponent: u8) -> Result<f32> {
    let refused = || Error::Invalid("codec `bfp8` cannot hold infinity or NaN".to_owned());
    (exponent < 255).then(|| 2_f64.powi(i32::from(exponent.max(1)) - 133) as f32).ok_or_else(refused)
}

/// Cuts rows into blocks, each with its exponent and its step.
fn blocks(values: &[f32], shape: BlockShape, size: usize) -> Result<Vec<(u8, f32, &[f32])>> {
    let exponent = |block: &[f32]| block.iter().map(|value| (value.to_bits() >> 23) as u8).max().unwrap_or(0);
    let blocks = values.chunks(shape.width.max(1)).flat_map(|row| row.chunks(size));
    blocks.map(|block| Ok((exponent(block), step(exponent(block))?, block))).collect()
}

impl ActivationCodec for Bfp8 {
    fn input(&self) -> CodecInput {
        CodecInput::Values
    }
    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        let mut encoded = Vec::with_capacity(shape.values()?);
        for (exponent, step, block) in blocks(values, shape, self.0)? {
            encoded.push(exponent);
            encoded.extend(block.iter().map(|value| (value / step).round() as i8 as u8)); // 128 becomes 127
        }
        Ok(encoded)
    }
    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let (values, row_bytes) = (shape.values()?, shape.width.saturating_add(shape.width.div_ceil(self.0)));
        if bytes.len() != shape.rows * row_bytes {
            return Err(Error::Invalid(format!("codec `bfp8`: {} bytes are no block of {values} values", bytes.len())));
        }
        let mut decoded = Vec::with_capacity(values);
        for block in bytes.chunks(row_bytes.max(1)).flat_map(|row| row.chunks(self.0 + 1)) {
            let step = step(block[0])?;
            decoded.extend(block[1..].iter().map(|byte| (f32::from(*byte as i8) * step).max(f32::MIN)));
        }
        Ok(decoded)
    }
    fn error_bounds(&self, values: &[f32], shape: BlockShape) -> Result<Vec<f32>> {
        let bound = |value: &f32, step: f32| (value.abs() - 127.0 * step).max(step / 2.0);
        Ok(blocks(values, shape, self.0)?.into_iter().flat_map(|(_, step, block)| block.iter().map(move |v| bound(v, step))).collect())
    }
}
