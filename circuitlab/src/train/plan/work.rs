//! The arithmetic of a step, and how long this machine takes for it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use circuitlab_core::{Dims, Result, Transcoder};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::layout::Layout;

/// What one step takes of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Work {
    /// Active features of a layer on a row that `sparse_flop` is for.
    pub l0: f64,
    /// Floating-point operations of the encoders' products, which no form of the step is without.
    pub encoder_flop: f64,
    /// Those of all products over active entries: encoders', decoding, and the three gradients. The window of trained thresholds, whose
    /// entries are a few times the active ones, is left out.
    pub sparse_flop: f64,
    /// Those of all products, all of them dense.
    pub dense_flop: f64,
    /// Those of entries alone, that is of all but the encoders' products, with three silent entries near the threshold for each active one.
    pub entry_flop: f64,
    /// Bytes of decoders that a step over entries reads, twice, and of their gradients, which it writes.
    pub decoder_bytes: f64,
    /// Bytes that the optimiser reads and writes.
    pub optimiser_bytes: f64,
    /// What the machine can do, where it was measured.
    pub rates: Option<Rates>,
    /// Seconds that no step is below: the encoders' products and the optimiser's pass.
    pub least_seconds: Option<f64>,
    /// About what a step over active entries takes: those, the entries' products, and the decoders' way through memory.
    pub sparse_seconds: Option<f64>,
    /// Seconds of a dense step's products and of the optimiser's pass; what goes over all entries one by one comes on top.
    pub dense_seconds: Option<f64>,
}

/// What a machine can do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// Operations of an encoder's product in a second.
    pub flop_per_s: f64,
    /// Operations in a second of all threads that add up rows by places.
    pub entry_flop_per_s: f64,
    /// Bytes that a copy reads and writes in a second.
    pub bytes_per_s: f64,
}

impl Work {
    /// For `rows` of a step on each rank.
    ///
    /// # Errors
    /// What the transcoder returns.
    pub(super) fn new(transcoder: &dyn Transcoder, dims: Dims, layout: Layout, rows: u64, l0: f64, optimiser_bytes: f64) -> Result<Self> {
        let Dims { layers, d_model, d_features } = dims;
        let features = d_features.div_ceil(layout.feature.max(1)) as f64;
        let (rows, width, l0_of_rank) = (rows as f64, d_model as f64, l0 * features / d_features.max(1) as f64);
        let (mut dense, mut sparse, mut near, mut decoders) = (0.0, 0.0, 0.0, 0.0);
        for source in 0..layers {
            let targets = transcoder.targets(dims, source)?.len() as f64;
            // The encoder's product and its gradient, and for each target the decoder's and its two gradients.
            dense += 2.0 * width * features * (2.0 + 3.0 * targets);
            sparse += 2.0 * width * (features + l0_of_rank * (1.0 + 3.0 * targets));
            near += 2.0 * width * 3.0 * l0_of_rank * targets;
            decoders += width * features * targets;
        }
        Ok(Self {
            l0,
            encoder_flop: rows * 2.0 * width * features * layers as f64,
            sparse_flop: rows * sparse,
            dense_flop: rows * dense,
            entry_flop: rows * (sparse + near) - rows * 2.0 * width * features * layers as f64,
            decoder_bytes: 3.0 * 4.0 * decoders,
            optimiser_bytes,
            rates: None,
            least_seconds: None,
            sparse_seconds: None,
            dense_seconds: None,
        })
    }

    /// That of a second transcoder too.
    pub(super) fn with(self, other: &Self) -> Self {
        Self {
            encoder_flop: self.encoder_flop + other.encoder_flop,
            sparse_flop: self.sparse_flop + other.sparse_flop,
            dense_flop: self.dense_flop + other.dense_flop,
            entry_flop: self.entry_flop + other.entry_flop,
            decoder_bytes: self.decoder_bytes + other.decoder_bytes,
            optimiser_bytes: self.optimiser_bytes + other.optimiser_bytes,
            ..self
        }
    }

    /// The same with times, from a machine's rates.
    pub(super) fn at(self, rates: Rates) -> Self {
        let seconds = |flop: f64| Some(flop / rates.flop_per_s + self.optimiser_bytes / rates.bytes_per_s);
        let entries = self.entry_flop / rates.entry_flop_per_s + self.decoder_bytes / rates.bytes_per_s;
        let least_seconds = seconds(self.encoder_flop);
        let sparse_seconds = least_seconds.map(|least| least + entries);
        Self { rates: Some(rates), least_seconds, sparse_seconds, dense_seconds: seconds(self.dense_flop), ..self }
    }
}

/// The time that each rate is measured for.
const MEASURED: Duration = Duration::from_millis(300);

/// Features of the encoder that is measured, at most.
const MOST_FEATURES: i64 = 4096;

/// Rows of the batch that is measured, at most.
const MOST_ROWS: i64 = 1024;

/// More than caches hold: bytes of what is copied.
const COPIED_BYTES: i64 = 1 << 26;

impl Rates {
    /// Measures this machine's CPU, with as many threads as libtorch has.
    pub(super) fn measure(dims: Dims, rows: u64, kind: Kind) -> Self {
        let options = (kind, Device::Cpu);
        let rows = i64::try_from(rows).unwrap_or(MOST_ROWS).clamp(1, MOST_ROWS);
        let (width, features) = (dims.d_model as i64, (dims.d_features as i64).clamp(1, MOST_FEATURES));
        let (inputs, encoder) = (Tensor::ones([rows, width], options), Tensor::ones([features, width], options));
        let products = Tensor::zeros([rows, features], options);
        let flop = 2.0 * (rows * width * features) as f64;
        let flop_per_s = flop / shortest(|| drop(black_box(inputs.mm_out(&products, &encoder.tr()))));
        let numbers = COPIED_BYTES / kind.elt_size_in_bytes() as i64;
        let (from, mut to) = (Tensor::ones([numbers], options), Tensor::zeros([numbers], options));
        let bytes_per_s = 2.0 * COPIED_BYTES as f64 / shortest(|| to.copy_(black_box(&from)));
        let threads = f64::from(tch::get_num_threads().max(1));
        Self { flop_per_s, entry_flop_per_s: threads * circuitlab_kernels::rows::flop_per_s(), bytes_per_s }
    }
}

/// The shortest time in seconds that something takes: others may use the machine too.
fn shortest(mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut shortest = f64::INFINITY;
    // The first time, memory is fresh.
    work();
    while begin.elapsed() < MEASURED || !shortest.is_finite() {
        let one = Instant::now();
        work();
        shortest = shortest.min(one.elapsed().as_secs_f64());
    }
    shortest.max(1e-9)
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Registry, Spec};

    use super::*;

    #[test]
    fn operations_are_counted_by_hand() {
        circuitlab_plugins::link();
        let build = |name| Registry::linked().and_then(|known| known.build::<dyn Transcoder>(&Spec::named(name))).expect("builds");
        let dims = Dims { layers: 3, d_model: 4, d_features: 10 };
        let one = Layout { data: 1, feature: 1, sharded: false };
        let work = Work::new(&*build("clt"), dims, one, 5, 2.0, 560.0).expect("three layers");
        // B L d F (3 L + 7), the cost of a dense CLT.
        assert!((work.dense_flop - f64::from(5 * 3 * 4 * 10 * (3 * 3 + 7))).abs() < 1e-6);
        assert!((work.encoder_flop - f64::from(2 * 5 * 3 * 4 * 10)).abs() < 1e-6);
        // Of each of the 2 entries, 3 products with decoders of 3, 2 and 1 targets, and one with the input.
        let entries = 5 * 2 * (2 * 4) * (10 + 7 + 4);
        assert!((work.sparse_flop - work.encoder_flop - f64::from(entries)).abs() < 1e-6);
        let timed = work.at(Rates { flop_per_s: 1200.0, entry_flop_per_s: 300.0, bytes_per_s: 560.0 });
        assert_eq!(timed.least_seconds, Some(1.0 + 1.0));
        assert_eq!(timed.dense_seconds, Some(8.0 + 1.0));
        // Three silent entries for each active one go through the decoders once more; 4 x 10 x (3 + 2 + 1) weights, 12 bytes each.
        let near = 5 * 2 * (2 * 4) * 3 * (3 + 2 + 1);
        let more = f64::from(entries + near) / 300.0 + f64::from(12 * 4 * 10 * 6) / 560.0;
        assert!((timed.sparse_seconds.expect("measured") - 2.0 - more).abs() < 1e-9);

        let half = Work::new(&*build("plt"), dims, Layout { feature: 2, ..one }, 5, 2.0, 0.0).expect("three layers");
        assert!((half.encoder_flop - work.encoder_flop / 2.0).abs() < 1e-6);
        assert!((half.dense_flop - 3.0 * f64::from(5 * 2 * 4 * 5 * 5)).abs() < 1e-6);
    }

    #[test]
    fn this_machine_can_do_something() {
        let rates = Rates::measure(Dims { layers: 1, d_model: 8, d_features: 16 }, 4, Kind::Float);
        assert!(rates.flop_per_s > 0.0 && rates.bytes_per_s > 0.0 && rates.flop_per_s.is_finite() && rates.bytes_per_s.is_finite());
    }
}
