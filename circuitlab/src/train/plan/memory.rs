//! The memory of a rank, part by part.

use circuitlab_core::{Dims, ParameterSpec, Precision};
use serde::Serialize;
use tch::{Device, Kind};

use super::layout::Layout;

/// Batches of 32-bit floats that exist at a time: one is trained on, two wait, one is put together.
const BATCHES: u64 = 4;

/// At the start: the one that biases are set from, and one that is read ahead.
const FIRST_BATCHES: u64 = 2;

/// What setting biases takes at a time beside its rows.
const QUANTILE_BYTES: u64 = 16 << 22;

/// What a checkpoint is written in.
const PIECE_BYTES: u64 = 64 << 20;

/// Lists of entries have room for as many as the features so far let expect, and lie between each other in memory.
const LISTED: f64 = 1.1;

/// What the memory of a rank depends on.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    pub(super) specs: &'a [ParameterSpec],
    pub(super) dims: Dims,
    pub(super) layout: Layout,
    /// What the run computes in.
    pub(super) kind: Kind,
    /// Bytes of a number of a moment, its share of scales included.
    pub(super) moment_bytes: f64,
    /// Rows that a rank steps on at a time.
    pub(super) rows: u64,
    /// Rows that a rank has of a batch.
    pub(super) batch_rows: u64,
    /// Rows that biases are set from.
    pub(super) first_rows: u64,
    /// The share of entries that are active, where the step works on these alone.
    pub(super) active_share: Option<f64>,
    /// Chunks that rows are mixed from, those read ahead included.
    pub(super) windows: u64,
    /// The program itself, libtorch included.
    pub(super) process: u64,
}

/// Bytes of a rank. What it takes at most is [`peak`](Self::peak).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Parameters as they are computed with.
    pub weights: u64,
    /// Copies of 32 bits of those that are computed with in fewer.
    pub masters: u64,
    /// Both moments.
    pub moments: u64,
    /// Gradients.
    pub gradients: u64,
    /// The weights of two layers in one piece and their gradients on the way, where ranks keep shards of them: one layer's come or go
    /// while the other is computed with.
    pub gathered: u64,
    /// What a step makes along its way.
    pub activations: u64,
    /// When a checkpoint or the result is saved: the pieces that it is written in.
    pub saving: u64,
    /// Batches; in the host's memory.
    pub batches: u64,
    /// Chunks that rows are mixed from, as they are stored; in the host's memory.
    pub windows: u64,
    /// The program itself, libtorch included, as this one is now; in the host's memory.
    pub process: u64,
    /// What setting the biases takes before the first step, parameters left out. Gradients and batches come later.
    pub start: u64,
}

impl Memory {
    pub(super) fn new(sizes: &Sizes<'_>) -> Self {
        let Sizes { specs, layout, kind, .. } = sizes;
        let full = bytes(Precision::Full.kind(*kind));
        let own = |spec: &ParameterSpec| bytes(spec.precision.kind(*kind));
        let sum = |bytes_of: &dyn Fn(&ParameterSpec) -> u64| specs.iter().map(|spec| layout.owned(spec) * bytes_of(spec)).sum::<u64>();
        let owned = sum(&|_| 1);
        let gathered = |layer| {
            let of_layer = specs.iter().filter(|spec| spec.layer == layer && layout.splits(spec));
            // A gradient on its way to its ranks has those of the others beside it.
            of_layer.map(|spec| layout.used(spec) * (own(spec) + 2 * full)).sum::<u64>()
        };
        let pairs = (0..sizes.dims.layers).map(|layer| gathered(layer) + if layer > 0 { gathered(layer - 1) } else { 0 });
        let row = (sizes.dims.layers * sizes.dims.d_model) as u64;
        Self {
            weights: sum(&own),
            masters: sum(&|spec| if own(spec) < full { full } else { 0 }),
            moments: (2.0 * sizes.moment_bytes * owned as f64) as u64,
            gradients: owned * full,
            gathered: pairs.max().unwrap_or(0),
            activations: activations(sizes),
            saving: PIECE_BYTES,
            batches: BATCHES * sizes.batch_rows * row * 2 * 4,
            windows: sizes.windows,
            process: sizes.process,
            start: FIRST_BATCHES * sizes.first_rows * row * 2 * 4 + QUANTILE_BYTES,
        }
    }

    /// That of a second transcoder on the same stream: they are stepped, started and saved one after the other, and keep what they keep.
    pub(super) fn with(&self, other: &Self) -> Self {
        Self {
            weights: self.weights + other.weights,
            masters: self.masters + other.masters,
            moments: self.moments + other.moments,
            gradients: self.gradients + other.gradients,
            gathered: self.gathered.max(other.gathered),
            activations: self.activations + other.activations,
            saving: self.saving.max(other.saving),
            start: self.start.max(other.start),
            ..*self
        }
    }

    /// The most that the rank takes of the memory that it computes in: on a CPU the whole, else the device's.
    pub fn peak(&self, device: Device) -> u64 {
        let state = self.weights + self.masters + self.moments + self.gradients + self.gathered + self.activations + self.saving;
        if device != Device::Cpu {
            return state;
        }
        self.process + self.windows + (state + self.batches).max(self.weights + self.start)
    }

    /// The most that it takes of the host's memory beside a device of its own; nothing where it computes on the CPU.
    pub fn host(&self, device: Device) -> Option<u64> {
        (device != Device::Cpu).then_some(self.process + self.windows + self.batches.max(self.start))
    }
}

/// What a step makes along its way. Per row and layer, `d_model` numbers each: the error, and twice what the targets' spread takes. And
/// per feature, where the step works on entries: for an active one its row in 32 bits and its value, and in one layer its gradient;
/// and of the silent ones, near their threshold or far from it, at most half, the row of each. Else inputs by layer, and per feature the
/// pre-activation and the activation of all layers, with a mask; and of one layer two more that its gradient takes.
fn activations(sizes: &Sizes<'_>) -> u64 {
    let full = bytes(Precision::Full.kind(sizes.kind)) as f64;
    let Dims { layers, d_model, d_features } = sizes.dims;
    let (rows, layers, features) = (sizes.rows as f64, layers as f64, d_features.div_ceil(sizes.layout.feature.max(1)) as f64);
    let (of_number, of_feature) = match sizes.active_share {
        Some(share) => (3.0 * full, LISTED * (layers * (share * (4.0 + full) + (1.0 - share) / 2.0 * 4.0) + share * full)),
        None => (4.0 * full, layers * (2.0 * full + 1.0) + 2.0 * full),
    };
    (rows * (layers * d_model as f64 * of_number + features * of_feature)) as u64
}

fn bytes(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

/// How much memory this process has now; a usual amount where the system does not say.
pub(super) fn process() -> u64 {
    const USUAL: u64 = 200 << 20;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    resident(&status).unwrap_or(USUAL)
}

/// From lines such as `VmRSS: 123456 kB`.
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use circuitlab_core::{Init, Update};

    use super::*;

    fn spec(name: &str, layer: usize, shape: &[i64], per_feature: bool) -> ParameterSpec {
        let precision = if shape.len() > 1 { Precision::Compute } else { Precision::Full };
        ParameterSpec {
            name: name.into(),
            layer,
            shape: shape.to_vec(),
            init: Init::Constant(0.0),
            per_feature,
            update: Update::Gradient,
            precision,
        }
    }

    /// Two layers of 8 features, 4 wide: 8 x 4 and 8 and 8 x 2 x 4 and 4 numbers, then 8 x 4, 8, 8 x 1 x 4 and 4.
    fn specs() -> Vec<ParameterSpec> {
        [(0, 2), (1, 1)]
            .into_iter()
            .flat_map(|(layer, targets)| {
                [("W_enc", vec![8, 4]), ("b_enc", vec![8]), ("W_dec", vec![8, targets, 4]), ("b_dec", vec![4])]
                    .map(|(name, shape)| spec(name, layer, &shape, name != "b_dec"))
            })
            .collect()
    }

    fn memory(kind: Kind, layout: Layout, active_share: Option<f64>, moment_bytes: f64) -> Memory {
        let (specs, dims) = (specs(), Dims { layers: 2, d_model: 4, d_features: 8 });
        let rows = 10 / layout.data as u64;
        Memory::new(&Sizes {
            specs: &specs,
            dims,
            layout,
            kind,
            moment_bytes,
            rows,
            batch_rows: rows,
            first_rows: 100,
            active_share,
            windows: 1000,
            process: 5000,
        })
    }

    const ONE: Layout = Layout { data: 1, feature: 1, sharded: false };

    #[test]
    fn one_rank_has_everything_once() {
        let got = memory(Kind::Float, ONE, Some(0.25), 4.0);
        // 108 numbers in the first layer, 76 in the second.
        assert_eq!((got.weights, got.masters, got.moments, got.gradients, got.gathered), (4 * 184, 0, 8 * 184, 4 * 184, 0));
        // 10 rows of 2 x 4 x 3 floats, and 160 entries: a quarter active at 8 bytes, and 4 more in one layer; three eighths known by row.
        assert_eq!(got.activations, 10 * (2 * 4 * 3 * 4) + (40 * 8 + 20 * 4 + 60 * 4) * 11 / 10);
        assert_eq!((got.saving, got.batches, got.start), (64 << 20, 4 * 10 * 8 * 2 * 4, 2 * 100 * 8 * 2 * 4 + (16 << 22)));
        let short = Memory { saving: 0, ..got };
        assert_eq!(short.peak(Device::Cpu), 5000 + 1000 + got.weights + got.start, "the start takes most of so small a run");
        let state = got.weights + got.moments + got.gradients + got.activations + got.saving;
        assert_eq!((got.peak(Device::Cuda(0)), got.host(Device::Cpu)), (state, None));
        assert_eq!(got.host(Device::Cuda(0)), Some(6000 + got.start));
        let later = Memory { start: 0, ..got };
        assert_eq!(later.peak(Device::Cpu), 6000 + state + got.batches);
    }

    #[test]
    fn sixteen_bits_bring_masters() {
        let got = memory(Kind::BFloat16, ONE, Some(0.0), 1.0 + 4.0 / 256.0);
        // 160 weights of 2 bytes; 24 biases of 4.
        assert_eq!((got.weights, got.masters, got.gradients), (2 * 160 + 4 * 24, 4 * 160, 4 * 184));
        assert_eq!(got.moments, (2.0_f64 * 1.015_625 * 184.0) as u64);
    }

    #[test]
    fn dense_steps_keep_all_entries() {
        let got = memory(Kind::Double, ONE, None, 8.0);
        assert_eq!(got.activations, 10 * (2 * 4 * 4 * 8) + 10 * 8 * (2 * (2 * 8 + 1) + 2 * 8));
    }

    #[test]
    fn ranks_share() {
        let split = memory(Kind::Float, Layout { data: 1, feature: 2, sharded: false }, Some(0.0), 4.0);
        // Half of 8 features; the 2 x 4 numbers of b_dec are everywhere.
        assert_eq!(split.weights, 4 * ((184 - 8) / 2 + 8));
        let sharded = memory(Kind::Float, Layout { data: 2, feature: 1, sharded: true }, Some(0.0), 4.0);
        // Of 160 weights half; 24 biases are everywhere.
        assert_eq!((sharded.weights, sharded.moments, sharded.gradients), (4 * 104, 8 * 104, 4 * 104));
        assert_eq!(sharded.gathered, 160 * 12, "both layers are there at a time");
        assert_eq!(sharded.batches, 4 * 5 * 8 * 2 * 4);
    }

    #[test]
    fn the_process_says_how_large_it_is() {
        assert_eq!(resident("VmHWM:\t 9 kB\nVmRSS:\t    12 kB\n"), Some(12 * 1024));
        assert_eq!(resident("VmRSS: many"), None);
        assert!(process() > 1 << 20);
    }
}
