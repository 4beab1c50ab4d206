//! What a cache's rows are like, and what codecs would make of them.

use std::time::Instant;

use circuitlab_core::codec::ChainSpec;
use circuitlab_core::random::Permutation;
use circuitlab_core::{BlockShape, CodecChain, Registry};
use serde::Serialize;

use super::chunk::Side;
use super::open::Cache;
use super::statistics::Statistics;
use crate::progress::Progress;
use crate::{Error, Result};

/// What to look at.
#[derive(Debug, Clone)]
pub struct ReportOptions {
    /// Chains to encode the rows with.
    pub codecs: Vec<ChainSpec>,
    /// About how many rows to look at; whole chunks are taken, in a random order.
    pub rows: u64,
}

/// What is known of a cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The chain that it is stored with.
    pub codec: String,
    /// Rows of the cache.
    pub rows: u64,
    /// Rows that were looked at.
    pub sampled_rows: u64,
    /// Bytes of a stored value, headers and index included.
    pub bytes_per_value: f64,
    /// How many times smaller than 32-bit floats that is.
    pub ratio: f64,
    /// Inputs and outputs of layer 0, of layer 1, ...
    pub layers: Vec<LayerReport>,
    /// What each chain that was asked for makes of the rows.
    pub codecs: Vec<CodecReport>,
}

/// Inputs or outputs of one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// The layer.
    pub layer: usize,
    /// `inputs` or `outputs`.
    pub side: &'static str,
    /// Mean L2 norm of a row, over the whole cache.
    pub mean_norm: f64,
    /// Root mean square over dimensions of their standard deviations, over the whole cache.
    pub std: f64,
    /// Largest magnitude of the sample.
    pub max_abs: f64,
    /// Fourth central moment of all values of the sample over the square of the second: 3 for a bell, more for heavier tails.
    pub kurtosis: f64,
}

/// One chain on the rows of the sample. An NMSE is `sum |x - x'|^2 / sum |x|^2`, over the row or the layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CodecReport {
    /// The chain.
    pub codec: String,
    /// Bytes of an encoded value.
    pub bytes_per_value: f64,
    /// How many times smaller than 32-bit floats that is.
    pub ratio: f64,
    /// Of inputs and outputs of layer 0, of layer 1, ...
    pub nmse: Vec<f64>,
    /// The mean of these.
    pub mean_nmse: f64,
    /// The largest of these.
    pub max_nmse: f64,
    /// The largest of a single row. Rows of zeros do not count.
    pub worst_row_nmse: f64,
    /// Gigabytes of 32-bit floats that one thread encodes in a second.
    pub encode_gb_per_s: f64,
    /// And decodes.
    pub decode_gb_per_s: f64,
}

/// Looks at a sample of a cache's rows.
///
/// # Errors
/// Damaged chunks, and codecs that are not known or refuse the rows.
pub fn report(cache: &Cache, registry: &Registry, options: &ReportOptions, progress: &dyn Progress) -> Result<Report> {
    let chains = options.codecs.iter().map(|spec| Ok(CodecChain::build(registry, spec)?)).collect::<Result<Vec<_>>>()?;
    let chunks = sample(cache, options.rows);
    let sides = || (0..cache.identity().layers).flat_map(|layer| [(layer, Side::Inputs), (layer, Side::Targets)]);
    let mut moments = vec![Moments::default(); sides().count()];
    let mut sums: Vec<CodecSums> = chains.iter().map(|_| CodecSums::new(moments.len())).collect();
    progress.begin("reading rows", chunks.len() as u64, "chunks");
    let mut sampled_rows = 0;
    for (done, chunk) in chunks.iter().enumerate() {
        let reader = cache.chunk(*chunk)?;
        sampled_rows += reader.rows() as u64;
        for (block, (layer, side)) in sides().enumerate() {
            let values = reader.values(layer, side)?;
            moments[block].add(&values);
            for (chain, sums) in chains.iter().zip(&mut sums) {
                let added = sums.add(chain, block, &values, reader.shape());
                added.map_err(|error| Error::Invalid(format!("codec `{}`, layer {layer}: {error}", chain.spec())))?;
            }
        }
        progress.at(done as u64 + 1, "");
    }
    progress.end();
    let values = cache.rows() * (2 * cache.identity().layers * cache.identity().d_model) as u64;
    let layers = sides().zip(&moments).map(|((layer, side), moments)| layer_report(cache, layer, side, moments)).collect();
    Ok(Report {
        codec: cache.codec().spec().to_string(),
        rows: cache.rows(),
        sampled_rows,
        bytes_per_value: cache.bytes() as f64 / values.max(1) as f64,
        ratio: 4.0 * values as f64 / cache.bytes().max(1) as f64,
        layers,
        codecs: chains.iter().zip(sums).map(|(chain, sums)| sums.finish(chain)).collect(),
    })
}

/// The first chunks of a random order that have so many rows together, at least one.
fn sample(cache: &Cache, rows: u64) -> Vec<usize> {
    let all = cache.chunk_rows();
    let order = Permutation::new(0, "report", 0, all.len() as u64);
    let mut taken = 0;
    let mut chunks = Vec::new();
    for chunk in (0..order.len()).map(|place| order.at(place) as usize) {
        chunks.push(chunk);
        taken += all[chunk];
        if taken >= rows {
            break;
        }
    }
    chunks
}

fn layer_report(cache: &Cache, layer: usize, side: Side, moments: &Moments) -> LayerReport {
    let (name, statistics): (_, &Statistics) =
        if side == Side::Inputs { ("inputs", &cache.inputs()[layer]) } else { ("outputs", &cache.targets()[layer]) };
    LayerReport {
        layer,
        side: name,
        mean_norm: statistics.mean_norm,
        std: (statistics.variance() / cache.identity().d_model as f64).sqrt(),
        max_abs: f64::from(moments.largest),
        kurtosis: moments.kurtosis(),
    }
}

/// Sums of powers of values.
#[derive(Debug, Clone, Default)]
struct Moments {
    count: f64,
    powers: [f64; 4],
    largest: f32,
}

impl Moments {
    fn add(&mut self, values: &[f32]) {
        self.count += values.len() as f64;
        for value in values {
            self.largest = self.largest.max(value.abs());
            let value = f64::from(*value);
            let square = value * value;
            let powers = [value, square, square * value, square * square];
            self.powers.iter_mut().zip(powers).for_each(|(sum, power)| *sum += power);
        }
    }

    fn kurtosis(&self) -> f64 {
        let [first, second, third, fourth] = self.powers.map(|sum| sum / self.count);
        let variance = second - first * first;
        let central = fourth - 4.0 * first * third + 6.0 * first * first * second - 3.0 * first.powi(4);
        central / (variance * variance)
    }
}

/// What one chain makes of the sample.
#[derive(Debug, Clone)]
struct CodecSums {
    raw_bytes: u64,
    bytes: u64,
    encode_s: f64,
    decode_s: f64,
    /// Squared error and squared values of each block of a chunk.
    errors: Vec<[f64; 2]>,
    worst_row: f64,
    /// Used again and again, so that memory's first use is not measured.
    decoded: Vec<f32>,
}

impl CodecSums {
    fn new(blocks: usize) -> Self {
        let errors = vec![[0.0; 2]; blocks];
        Self { raw_bytes: 0, bytes: 0, encode_s: 0.0, decode_s: 0.0, errors, worst_row: 0.0, decoded: Vec::new() }
    }

    fn add(&mut self, chain: &CodecChain, block: usize, values: &[f32], shape: BlockShape) -> circuitlab_core::Result<()> {
        let started = Instant::now();
        let encoded = chain.encode(values, shape)?;
        self.encode_s += started.elapsed().as_secs_f64();
        self.decoded.resize(values.len(), 0.0);
        let (mut unpacked, mut spare) = (Vec::with_capacity(chain.max_unpacked_bytes(shape)?), Vec::new());
        let started = Instant::now();
        let bytes = chain.unpack(&encoded, shape, &mut unpacked, &mut spare)?;
        chain.decode_rows(bytes, shape, 0, &mut self.decoded)?;
        self.decode_s += started.elapsed().as_secs_f64();
        self.bytes += encoded.len() as u64;
        self.raw_bytes += 4 * values.len() as u64;
        let width = shape.width.max(1);
        for (row, decoded) in values.chunks_exact(width).zip(self.decoded.chunks_exact(width)) {
            let squared = |differences: &mut dyn Iterator<Item = f64>| differences.map(|value| value * value).sum::<f64>();
            let error = squared(&mut row.iter().zip(decoded).map(|(value, decoded)| f64::from(*value) - f64::from(*decoded)));
            let size = squared(&mut row.iter().map(|value| f64::from(*value)));
            if size > 0.0 {
                self.worst_row = self.worst_row.max(error / size);
            }
            self.errors[block][0] += error;
            self.errors[block][1] += size;
        }
        Ok(())
    }

    fn finish(self, chain: &CodecChain) -> CodecReport {
        let nmse: Vec<f64> = self.errors.iter().map(|[error, size]| if *size > 0.0 { error / size } else { 0.0 }).collect();
        let rate = |seconds: f64| self.raw_bytes as f64 / 1e9 / seconds.max(1e-12);
        CodecReport {
            codec: chain.spec().to_string(),
            bytes_per_value: 4.0 * self.bytes as f64 / self.raw_bytes.max(1) as f64,
            ratio: self.raw_bytes as f64 / self.bytes.max(1) as f64,
            mean_nmse: nmse.iter().sum::<f64>() / nmse.len().max(1) as f64,
            max_nmse: nmse.iter().copied().fold(0.0, f64::max),
            nmse,
            worst_row_nmse: self.worst_row,
            encode_gb_per_s: rate(self.encode_s),
            decode_gb_per_s: rate(self.decode_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kurtosis_is_that_of_the_textbook() {
        let mut moments = Moments::default();
        moments.add(&[1.0, 2.0, 3.0]);
        moments.add(&[4.0, 5.0]);
        // Around the mean 3: second moment 2, fourth 6.8.
        assert!((moments.kurtosis() - 1.7).abs() < 1e-12);
        assert!((moments.largest - 5.0).abs() < f32::EPSILON);
    }
}
