//! Codecs: how a block of activations becomes bytes.
//!
//! A chain such as `int8+zstd` starts with one codec that takes values and goes on with codecs that take bytes.

use std::fmt::{self, Debug};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plugin::Kind;
use crate::{Error, Registry, Result, Spec};

/// The shape of a block: one layer's inputs or outputs of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    /// Tokens.
    pub rows: usize,
    /// Values of each token, `d_model`.
    pub width: usize,
}

impl BlockShape {
    /// Values in the block, or an error where they are too many to count.
    ///
    /// # Errors
    /// [`Error::Invalid`] on overflow.
    pub fn values(self) -> Result<usize> {
        self.rows
            .checked_mul(self.width)
            .filter(|values| values.checked_mul(4).is_some())
            .ok_or_else(|| Error::Invalid(format!("a block of {} rows of {} values is too large", self.rows, self.width)))
    }

    /// Where `values` values from a row on stand in the block.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are no whole rows, or where the block has not so many.
    pub fn range_of(self, first_row: usize, values: usize) -> Result<Range<usize>> {
        let rows = values.checked_div(self.width).unwrap_or(0);
        if rows * self.width == values && first_row <= self.rows && rows <= self.rows - first_row {
            self.values()?;
            return Ok(first_row * self.width..first_row * self.width + values);
        }
        let Self { rows, width } = self;
        Err(Error::Invalid(format!("there are no {values} values from row {first_row} on in a block of {rows} rows of {width}")))
    }
}

/// What a codec takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecInput {
    /// The block's values: the codec stands first in its chain.
    Values,
    /// The bytes of the codec before it.
    Bytes,
}

/// Turns a block of activations into bytes and back.
///
/// A codec implements the pair of methods that fits its [`input`](Self::input), which is asked for once; the other pair
/// answers with an error.
/// Blocks may be empty. Decoders meet hostile bytes: they return errors, and allocate no more than the block needs.
/// Conformance is checked by [`testing::codec`](crate::testing::codec).
pub trait ActivationCodec: Debug + Send + Sync {
    /// What it takes.
    fn input(&self) -> CodecInput;

    /// Encodes values, row by row.
    ///
    /// # Errors
    /// Values that the codec cannot hold, such as infinities in a quantiser.
    fn encode_values(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        let _ = (values, shape);
        Err(Error::Invalid(format!("{self:?} takes bytes, not values")))
    }

    /// Gives `shape.rows * shape.width` values back.
    ///
    /// # Errors
    /// Bytes that are no such block.
    fn decode_values(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let _ = (bytes, shape);
        Err(Error::Invalid(format!("{self:?} takes bytes, not values")))
    }

    /// Decodes the rows from `first_row` on, as many as `values` holds, into memory of the caller's. By default it decodes the whole
    /// block and copies them.
    ///
    /// # Errors
    /// Bytes that are no such block, and rows that it has not.
    fn decode_rows(&self, bytes: &[u8], shape: BlockShape, first_row: usize, values: &mut [f32]) -> Result<()> {
        let range = shape.range_of(first_row, values.len())?;
        let decoded = self.decode_values(bytes, shape)?;
        let rows = decoded.get(range).ok_or_else(|| Error::Invalid(format!("{self:?} gave {} values for a block", decoded.len())))?;
        values.copy_from_slice(rows);
        Ok(())
    }

    /// Whether [`decode_rows`](Self::decode_rows) costs no more than the rows that it is asked for. Rows are then decoded one by one from
    /// the encoded block, which is all that is kept in memory. Asked for once. Default: no.
    fn has_row_access(&self) -> bool {
        false
    }

    /// The largest |decoded - original| of each value of a block. Zero, the default, means bit for bit.
    ///
    /// # Errors
    /// Values that the codec cannot hold.
    fn error_bounds(&self, values: &[f32], shape: BlockShape) -> Result<Vec<f32>> {
        let _ = shape;
        Ok(vec![0.0; values.len()])
    }

    /// The most bytes that [`encode_values`](Self::encode_values) gives for a block of this shape. Default: four a value.
    ///
    /// # Errors
    /// Shapes that are too large to count.
    fn max_encoded_bytes(&self, shape: BlockShape) -> Result<usize> {
        Ok(shape.values()? * 4)
    }

    /// Encodes bytes.
    ///
    /// # Errors
    /// Whatever the encoder refuses.
    fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let _ = bytes;
        Err(Error::Invalid(format!("{self:?} takes values, not bytes")))
    }

    /// Gives the bytes back, which must be no more than `limit_bytes`.
    ///
    /// # Errors
    /// Bytes that are no such block, or that would grow over the limit.
    fn decode_bytes(&self, bytes: &[u8], limit_bytes: usize) -> Result<Vec<u8>> {
        let _ = (bytes, limit_bytes);
        Err(Error::Invalid(format!("{self:?} takes values, not bytes")))
    }

    /// As [`decode_bytes`](Self::decode_bytes), into memory of the caller's, whatever it held. By default it is replaced.
    ///
    /// # Errors
    /// Those of [`decode_bytes`](Self::decode_bytes).
    fn decode_bytes_into(&self, bytes: &[u8], limit_bytes: usize, decoded: &mut Vec<u8>) -> Result<()> {
        *decoded = self.decode_bytes(bytes, limit_bytes)?;
        Ok(())
    }
}

/// The specs of a chain: `"int8+zstd"`, or a list of specs, in a config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Vec<Spec>")]
pub struct ChainSpec(pub Vec<Spec>);

impl ChainSpec {
    /// Reads `int8+zstd`.
    pub fn parse(text: &str) -> Self {
        Self(text.split('+').map(|name| Spec::named(name.trim())).collect())
    }
}

impl fmt::Display for ChainSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|spec| spec.name.as_str()).collect();
        f.write_str(&names.join("+"))
    }
}

impl TryFrom<Value> for ChainSpec {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Ok(Self::parse(&text)),
            Value::Array(items) => items.into_iter().map(Spec::try_from).collect::<Result<_, _>>().map(Self),
            other => Spec::try_from(other).map(|spec| Self(vec![spec])),
        }
    }
}

impl From<ChainSpec> for Vec<Spec> {
    fn from(chain: ChainSpec) -> Self {
        chain.0
    }
}

/// Codecs that run one after the other: values first, then bytes.
#[derive(Debug)]
pub struct CodecChain {
    spec: ChainSpec,
    values: Box<dyn ActivationCodec>,
    bytes: Vec<Box<dyn ActivationCodec>>,
}

impl CodecChain {
    /// Builds a chain; `none` is put in front of one that starts with a byte codec.
    ///
    /// # Errors
    /// Unknown names, refused settings, and a value codec that does not stand first.
    pub fn build(registry: &Registry, spec: &ChainSpec) -> Result<Self> {
        let mut specs = Vec::new();
        let mut codecs = Vec::new();
        for spec in &spec.0 {
            specs.push(registry.complete::<dyn ActivationCodec>(spec)?);
            codecs.push(registry.build::<dyn ActivationCodec>(spec)?);
        }
        if codecs.first().is_none_or(|codec| codec.input() == CodecInput::Bytes) {
            specs.insert(0, registry.complete::<dyn ActivationCodec>(&Spec::named("none"))?);
            codecs.insert(0, registry.build::<dyn ActivationCodec>(&Spec::named("none"))?);
        }
        if let Some(late) = codecs.iter().skip(1).position(|codec| codec.input() == CodecInput::Values) {
            return Err(Error::config("codec", format!("`{}` takes values, so it must stand first in `{spec}`", specs[late + 1].name)));
        }
        let values = codecs.remove(0);
        Ok(Self { spec: ChainSpec(specs), values, bytes: codecs })
    }

    /// The chain with every default filled in.
    pub fn spec(&self) -> &ChainSpec {
        &self.spec
    }

    /// The plugins that the chain is made of.
    pub fn plugins(&self) -> impl Iterator<Item = (Kind, &str)> {
        self.spec.0.iter().map(|spec| (Kind::Codec, spec.name.as_str()))
    }

    /// Encodes a block.
    ///
    /// # Errors
    /// A slice of another length than the shape's, and what a codec refuses.
    pub fn encode(&self, values: &[f32], shape: BlockShape) -> Result<Vec<u8>> {
        let expected = shape.values()?;
        if values.len() != expected {
            return Err(Error::Invalid(format!(
                "a block of {} rows of {} holds {expected} values, not {}",
                shape.rows,
                shape.width,
                values.len()
            )));
        }
        let first = self.values.encode_values(values, shape)?;
        self.bytes.iter().try_fold(first, |bytes, codec| codec.encode_bytes(&bytes))
    }

    /// Decodes a block.
    ///
    /// # Errors
    /// Bytes that are no such block.
    pub fn decode(&self, bytes: &[u8], shape: BlockShape) -> Result<Vec<f32>> {
        let expected = shape.values()?;
        let (mut unpacked, mut spare) = (Vec::new(), Vec::new());
        let values = self.values.decode_values(self.unpack(bytes, shape, &mut unpacked, &mut spare)?, shape)?;
        if values.len() == expected {
            return Ok(values);
        }
        Err(Error::Invalid(format!("codec `{}` gave {} values for a block of {expected}", self.spec, values.len())))
    }

    /// Undoes the codecs of bytes and leaves the codec of values: the first half of [`decode`](Self::decode), of which
    /// [`decode_rows`](Self::decode_rows) is the second. What it gives is `bytes` itself or lies in `unpacked`; `spare` is room to work in.
    ///
    /// # Errors
    /// Bytes that are no such block.
    pub fn unpack<'a>(&self, bytes: &'a [u8], shape: BlockShape, unpacked: &'a mut Vec<u8>, spare: &mut Vec<u8>) -> Result<&'a [u8]> {
        // A compressor may add a little to bytes that do not compress; what lies between two of them is bounded so.
        let limit = self.values.max_encoded_bytes(shape)?;
        let slack = limit / 64 + 4096;
        for (place, codec) in self.bytes.iter().enumerate().rev() {
            let allowed = if place == 0 { limit } else { limit + slack };
            if place + 1 == self.bytes.len() {
                codec.decode_bytes_into(bytes, allowed, unpacked)?;
            } else {
                std::mem::swap(unpacked, spare);
                codec.decode_bytes_into(spare, allowed, unpacked)?;
            }
        }
        Ok(if self.bytes.is_empty() { bytes } else { unpacked })
    }

    /// Decodes rows of a block that [`unpack`](Self::unpack) gave: those from `first_row` on, as many as `values` holds.
    ///
    /// # Errors
    /// Bytes that are no such block, and rows that it has not.
    pub fn decode_rows(&self, unpacked: &[u8], shape: BlockShape, first_row: usize, values: &mut [f32]) -> Result<()> {
        self.values.decode_rows(unpacked, shape, first_row, values)
    }

    /// Whether [`decode_rows`](Self::decode_rows) costs no more than the rows that it is asked for.
    pub fn has_row_access(&self) -> bool {
        self.values.has_row_access()
    }

    /// Whether codecs of bytes come after the codec of values.
    pub fn packs(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The most bytes that [`unpack`](Self::unpack) gives for a block of this shape.
    ///
    /// # Errors
    /// Shapes that are too large to count.
    pub fn max_unpacked_bytes(&self, shape: BlockShape) -> Result<usize> {
        self.values.max_encoded_bytes(shape)
    }

    /// The largest |decoded - original| of each value.
    ///
    /// # Errors
    /// Values that the chain cannot hold.
    pub fn error_bounds(&self, values: &[f32], shape: BlockShape) -> Result<Vec<f32>> {
        self.values.error_bounds(values, shape)
    }
}
