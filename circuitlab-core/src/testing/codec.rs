//! The suite of codecs, and proptest strategies for blocks of activations.
//!
//! ```no_run
//! # fn linked() -> circuitlab_core::Result<()> {
//! use circuitlab_core::{ActivationCodec, Registry, Spec, testing};
//! let codec = Registry::linked()?.build::<dyn ActivationCodec>(&Spec::named("my-codec"))?;
//! testing::codec::conforms(codec.as_ref());
//! # Ok(())
//! # }
//! ```

use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};

use crate::{ActivationCodec, BlockShape, CodecChain, CodecInput, Result};

/// A block of activations as the suite makes it.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its shape.
    pub shape: BlockShape,
    /// Its values, row by row.
    pub values: Vec<f32>,
}

/// Blocks of finite values: empty ones, single rows and columns, zeros of both signs, and magnitudes from the smallest
/// denormal number to the largest float.
pub fn finite_blocks() -> impl Strategy<Value = Block> {
    let value = prop_oneof![
        6 => -8.0_f32..8.0,
        1 => Just(0.0_f32),
        1 => Just(-0.0_f32),
        1 => any::<f32>().prop_filter("finite", |value| value.is_finite()),
        1 => (0_u32..300).prop_map(f32::from_bits),
        1 => prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(f32::MIN_POSITIVE)],
    ];
    blocks_of(value.boxed())
}

/// Blocks of any bits at all, NaN payloads and infinities included.
pub fn any_blocks() -> impl Strategy<Value = Block> {
    blocks_of(any::<u32>().prop_map(f32::from_bits).boxed())
}

fn blocks_of(value: BoxedStrategy<f32>) -> impl Strategy<Value = Block> {
    let shape = prop_oneof![
        4 => (0_usize..12, 1_usize..150),
        1 => (1_usize..40, Just(1_usize)),
        1 => (Just(1_usize), 1_usize..300),
        1 => (0_usize..3, Just(0_usize)),
    ];
    shape.prop_flat_map(move |(rows, width)| {
        prop::collection::vec(value.clone(), rows * width).prop_map(move |values| Block { shape: BlockShape { rows, width }, values })
    })
}

/// Checks all that [`ActivationCodec`] promises.
///
/// # Panics
/// With the block or bytes that break a promise.
pub fn conforms(codec: &dyn ActivationCodec) {
    match codec.input() {
        CodecInput::Values => {
            check("encode_bytes", &Just(()), |()| refused("a codec of values took bytes", codec.encode_bytes(&[0])));
            values_conform(&Pair {
                encode: &|values, shape| codec.encode_values(values, shape),
                decode: &|bytes, shape| codec.decode_values(bytes, shape),
                bounds: &|values, shape| codec.error_bounds(values, shape),
                rows: &|bytes, shape, row, values| codec.decode_rows(bytes, shape, row, values),
            });
            check("max_encoded_bytes", &finite_blocks(), |block| {
                let encoded = codec.encode_values(&block.values, block.shape)?;
                prop_assert!(encoded.len() <= codec.max_encoded_bytes(block.shape)?, "{} bytes", encoded.len());
                Ok(())
            });
        }
        CodecInput::Bytes => {
            let shape = BlockShape { rows: 1, width: 1 };
            check("encode_values", &Just(()), |()| refused("a codec of bytes took values", codec.encode_values(&[0.0], shape)));
            bytes_conform(codec);
        }
    }
}

/// Checks a chain as [`conforms`] checks one codec.
///
/// # Panics
/// With the block or bytes that break a promise.
pub fn chain_conforms(chain: &CodecChain) {
    values_conform(&Pair {
        encode: &|values, shape| chain.encode(values, shape),
        decode: &|bytes, shape| chain.decode(bytes, shape),
        bounds: &|values, shape| chain.error_bounds(values, shape),
        rows: &|bytes, shape, row, values| {
            let (mut unpacked, mut spare) = (Vec::new(), Vec::new());
            chain.decode_rows(chain.unpack(bytes, shape, &mut unpacked, &mut spare)?, shape, row, values)
        },
    });
}

type Encode<'a> = dyn Fn(&[f32], BlockShape) -> Result<Vec<u8>> + 'a;
type Decode<'a> = dyn Fn(&[u8], BlockShape) -> Result<Vec<f32>> + 'a;
type Bounds<'a> = dyn Fn(&[f32], BlockShape) -> Result<Vec<f32>> + 'a;
type Rows<'a> = dyn Fn(&[u8], BlockShape, usize, &mut [f32]) -> Result<()> + 'a;

/// A codec of values, or a chain.
struct Pair<'a> {
    encode: &'a Encode<'a>,
    decode: &'a Decode<'a>,
    bounds: &'a Bounds<'a>,
    rows: &'a Rows<'a>,
}

impl Pair<'_> {
    fn round_trip(&self, block: &Block, encoded: &[u8]) -> TestCaseResult {
        let decoded = (self.decode)(encoded, block.shape)?;
        let bounds = (self.bounds)(&block.values, block.shape)?;
        prop_assert_eq!(decoded.len(), block.values.len());
        prop_assert_eq!(bounds.len(), block.values.len());
        for (place, ((value, decoded), bound)) in block.values.iter().zip(&decoded).zip(&bounds).enumerate() {
            let close = (f64::from(*value) - f64::from(*decoded)).abs() <= f64::from(*bound);
            let exact = value.to_bits() == decoded.to_bits();
            prop_assert!(exact || (*bound > 0.0 && close), "value {place}: {value:e} came back as {decoded:e}, bound {bound:e}");
        }
        let again = (self.encode)(&block.values, block.shape)?;
        prop_assert!(again == encoded, "the same block gave other bytes");
        self.some_rows(block.shape, encoded, &decoded)
    }

    /// Rows that are decoded alone, or some together, are those of the whole block.
    fn some_rows(&self, shape: BlockShape, encoded: &[u8], decoded: &[f32]) -> TestCaseResult {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (first, count) in [(0, shape.rows), (shape.rows / 2, 1.min(shape.rows)), (shape.rows.saturating_sub(2), 2.min(shape.rows))] {
            let mut rows = vec![f32::NAN; count * shape.width];
            (self.rows)(encoded, shape, first, &mut rows)?;
            prop_assert_eq!(
                bits(&rows),
                bits(&decoded[first * shape.width..][..count * shape.width]),
                "rows {} and {} after it",
                first,
                count
            );
        }
        let mut beyond = vec![0.0; shape.width.max(1)];
        refused("a row was given that the block has not", (self.rows)(encoded, shape, shape.rows, &mut beyond))
    }
}

fn values_conform(pair: &Pair<'_>) {
    check("finite blocks", &finite_blocks(), |block| {
        let encoded = (pair.encode)(&block.values, block.shape)?;
        pair.round_trip(&block, &encoded)
    });
    check("blocks of any bits", &any_blocks(), |block| {
        // A quantiser may refuse them; it may not panic, and what it takes it keeps.
        (pair.encode)(&block.values, block.shape).map_or(Ok(()), |encoded| pair.round_trip(&block, &encoded))
    });
    check("random bytes", &(prop::collection::vec(any::<u8>(), 0..400), 0_usize..5, 0_usize..70), |(bytes, rows, width)| {
        decodes_or_refuses(pair, &bytes, BlockShape { rows, width })
    });
    check("damaged bytes", &(finite_blocks(), any::<prop::sample::Index>(), 0_u8..8), |(block, place, bit)| {
        let encoded = (pair.encode)(&block.values, block.shape)?;
        if encoded.is_empty() {
            return Ok(());
        }
        let mut flipped = encoded.clone();
        flipped[place.index(encoded.len())] ^= 1 << bit;
        decodes_or_refuses(pair, &flipped, block.shape)?;
        if !block.values.is_empty() {
            let cut = &encoded[..place.index(encoded.len())];
            refused("a cut block was taken", (pair.decode)(cut, block.shape))?;
            let mut row = vec![0.0; block.shape.width];
            refused("a row of a cut block was given", (pair.rows)(cut, block.shape, 0, &mut row))?;
            // Damage in another row may go unseen; that is what checksums are for.
            (pair.rows)(&flipped, block.shape, 0, &mut row).or_else(|error| one_line(&error))?;
        }
        decodes_or_refuses(pair, &encoded, BlockShape { rows: block.shape.rows + 1, width: block.shape.width })
    });
    check("shapes that no machine holds", &Just(()), |()| {
        let shape = BlockShape { rows: usize::MAX / 2, width: 3 };
        refused("a block of more values than an address can count was taken", (pair.decode)(&[1, 2, 3], shape))?;
        let shape = BlockShape { rows: 1 << 40, width: 1 << 10 };
        refused("three bytes were taken for a petabyte", (pair.decode)(&[1, 2, 3], shape))
    });
}

fn decodes_or_refuses(pair: &Pair<'_>, bytes: &[u8], shape: BlockShape) -> TestCaseResult {
    match (pair.decode)(bytes, shape) {
        Ok(values) => prop_assert_eq!(values.len(), shape.rows * shape.width),
        Err(error) => one_line(&error)?,
    }
    Ok(())
}

fn bytes_conform(codec: &dyn ActivationCodec) {
    let bytes = || prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..2000);
    check("round trip", &bytes(), |bytes| {
        let encoded = codec.encode_bytes(&bytes)?;
        let decoded = codec.decode_bytes(&encoded, bytes.len())?;
        prop_assert!(decoded == bytes, "other bytes came back");
        let mut reused = vec![7; 300];
        codec.decode_bytes_into(&encoded, bytes.len(), &mut reused)?;
        prop_assert!(reused == bytes, "other bytes came back in memory that was used before");
        Ok(())
    });
    check("a limit", &(bytes(), any::<prop::sample::Index>()), |(bytes, limit)| {
        if bytes.is_empty() {
            return Ok(());
        }
        let encoded = codec.encode_bytes(&bytes)?;
        refused("the limit was overrun", codec.decode_bytes(&encoded, limit.index(bytes.len())))?;
        let mut roomy = Vec::with_capacity(3000);
        refused("the limit was overrun in memory with room", codec.decode_bytes_into(&encoded, limit.index(bytes.len()), &mut roomy))
    });
    check("damaged bytes", &(bytes(), any::<prop::sample::Index>(), 0_u8..8), |(bytes, place, bit)| {
        let mut encoded = codec.encode_bytes(&bytes)?;
        let cut = if encoded.is_empty() { 0 } else { place.index(encoded.len()) };
        stays_within(codec, &encoded[..cut], bytes.len())?;
        if let Some(byte) = encoded.get_mut(cut) {
            *byte ^= 1 << bit;
        }
        stays_within(codec, &encoded, bytes.len())?;
        stays_within(codec, &bytes, 1000)
    });
}

fn stays_within(codec: &dyn ActivationCodec, bytes: &[u8], limit_bytes: usize) -> TestCaseResult {
    match codec.decode_bytes(bytes, limit_bytes) {
        Ok(decoded) => prop_assert!(decoded.len() <= limit_bytes, "{} bytes, limit {limit_bytes}", decoded.len()),
        Err(error) => one_line(&error)?,
    }
    Ok(())
}

fn one_line(error: &crate::Error) -> TestCaseResult {
    let text = error.to_string();
    prop_assert!(!text.contains('\n') && !text.contains("panicked"), "{}", text);
    Ok(())
}

fn refused<T: Debug>(what: &str, result: Result<T>) -> TestCaseResult {
    match result {
        Ok(_) => Err(TestCaseError::fail(what.to_owned())),
        Err(error) => one_line(&error),
    }
}

/// Runs a property with the same cases every time.
fn check<S: Strategy>(what: &str, strategy: &S, property: impl Fn(S::Value) -> TestCaseResult) {
    let mut runner = TestRunner::deterministic();
    let config = Config { failure_persistence: None, ..Config::with_cases(256) };
    let rng = runner.new_rng();
    let mut runner = TestRunner::new_with_rng(config, rng);
    if let Err(error) = runner.run(strategy, property) {
        panic!("{what}: {error}");
    }
}
