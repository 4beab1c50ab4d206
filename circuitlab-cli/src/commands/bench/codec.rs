//! `circuitlab bench codec`.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use circuitlab_core::codec::ChainSpec;
use circuitlab_core::random::Stream;
use circuitlab_core::tensors::{self, TensorFile};
use circuitlab_core::{BlockShape, CodecChain, Error as CoreError};
use serde_json::{Value, json};
use tch::{Device, Kind};

use super::samples::{Samples, rotated, spec};
use crate::args::BenchCodecArgs;
use crate::commands::Context;
use crate::output::Table;

/// Rows of a made-up block.
const ROWS: usize = 4096;

/// One codec, and its gigabytes of 32-bit floats per second, round by round.
struct Case {
    name: String,
    chain: CodecChain,
    bytes: usize,
    /// `sum |x - x'|^2 / sum |x|^2`, of all rows and of the worst.
    nmse: [f64; 2],
    encode: Vec<f64>,
    decode: Vec<f64>,
}

pub(super) fn run(args: &BenchCodecArgs, context: &Context) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "--rounds: expected at least 1, got 0");
    let mut cases = args.codecs.iter().map(|name| Case::new(name, context)).collect::<anyhow::Result<Vec<_>>>()?;
    let (values, shape) = block(args)?;
    ensure!(!values.is_empty(), "a block of {} rows of {} values is empty; expected at least one value", shape.rows, shape.width);
    for round in 0..=args.rounds {
        for place in rotated(cases.len(), round) {
            cases[place].measure(&values, shape, round > 0)?;
        }
    }
    let figures: Vec<Value> = cases.iter().map(|case| case.figures(&cases[0], values.len())).collect();
    let whole = json!({"rows": shape.rows, "width": shape.width, "rounds": args.rounds, "codecs": figures});
    context.print(&whole, || {
        let mut table = Table::new([
            "codec",
            "bytes/value",
            "NMSE",
            "worst row",
            "encode GB/s",
            "spread",
            "to first",
            "decode GB/s",
            "spread",
            "to first",
        ]);
        for (case, figures) in cases.iter().zip(&figures) {
            let number =
                |pointer: &str, digits| format!("{:.digits$}", figures.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN));
            let mut cells = vec![case.name.clone(), number("/bytes_per_value", 4)];
            cells.extend(case.nmse.map(|nmse| format!("{nmse:.2e}")));
            for way in ["encode", "decode"] {
                cells.push(number(&format!("/{way}/gb_per_s"), 3));
                cells.push(number(&format!("/{way}/interquartile_range"), 3));
                cells.push(number(&format!("/{way}/to_first"), 2));
            }
            table.row(cells);
        }
        format!(
            "{table}\n{} rows of {} values, {} rounds; GB of 32-bit floats, medians; spread is the interquartile range",
            shape.rows, shape.width, args.rounds
        )
    })
}

impl Case {
    fn new(name: &str, context: &Context) -> anyhow::Result<Self> {
        let chain = CodecChain::build(&context.registry, &spec::<ChainSpec>("codec", name)?)?;
        Ok(Self { name: name.to_owned(), chain, bytes: 0, nmse: [0.0; 2], encode: Vec::new(), decode: Vec::new() })
    }

    fn measure(&mut self, values: &[f32], shape: BlockShape, counts: bool) -> anyhow::Result<()> {
        let rate = |started: Instant| (values.len() * 4) as f64 / 1e9 / started.elapsed().as_secs_f64().max(1e-12);
        let started = Instant::now();
        let encoded = black_box(self.chain.encode(black_box(values), shape).with_context(|| format!("codec `{}`", self.name))?);
        let encode = rate(started);
        let started = Instant::now();
        let decoded = black_box(self.chain.decode(black_box(&encoded), shape).with_context(|| format!("codec `{}`", self.name))?);
        let decode = rate(started);
        self.bytes = encoded.len();
        if !counts {
            self.nmse = nmse(values, &decoded, shape.width);
        }
        if counts {
            self.encode.push(encode);
            self.decode.push(decode);
        }
        Ok(())
    }

    fn figures(&self, first: &Self, values: usize) -> Value {
        let way = |own: &[f64], first: &[f64]| {
            let (own, first) = (Samples::new(own.iter().copied()), Samples::new(first.iter().copied()));
            json!({"gb_per_s": own.median(), "interquartile_range": own.interquartile_range(), "to_first": own.median() / first.median()})
        };
        json!({
            "codec": self.name, "settings": self.chain.spec(), "bytes_per_value": self.bytes as f64 / values as f64,
            "nmse": self.nmse[0], "worst_row_nmse": self.nmse[1],
            "encode": way(&self.encode, &first.encode), "decode": way(&self.decode, &first.decode),
        })
    }
}

fn block(args: &BenchCodecArgs) -> anyhow::Result<(Vec<f32>, BlockShape)> {
    if let Some(path) = &args.input {
        return recorded(path, args.tensor.as_deref(), args.rows);
    }
    let shape = BlockShape { rows: args.rows.unwrap_or(ROWS), width: args.width };
    let count = shape.values()?;
    // Bell-shaped, as activations are, and columns of different sizes, a few of them much larger than the rest.
    let mut stream = Stream::new(0, "activations", 0);
    let mut bell = || (0..4).map(|_| stream.uniform() as f32 - 0.5).sum::<f32>();
    let sizes: Vec<f32> = (0..shape.width).map(|_| (3.0 * bell()).exp()).collect();
    let mut values: Vec<f32> = (0..count).map(|place| bell() * sizes[place % shape.width]).collect();
    if args.heavy_tails {
        // Over a uniform number to the three quarters: the share of values beyond x falls as x to the -4/3, so that not even the variance
        // is finite; cut off at a thousand.
        let mut stream = Stream::new(0, "tails", 0);
        for value in &mut values {
            *value *= stream.uniform().powf(-0.75).min(1e3) as f32;
        }
    }
    Ok((values, shape))
}

/// Squared error over squared values, of all rows and of the worst that is not all zeros.
fn nmse(values: &[f32], decoded: &[f32], width: usize) -> [f64; 2] {
    let (mut all, mut worst) = ([0.0, 0.0], 0.0_f64);
    for (row, decoded) in values.chunks(width.max(1)).zip(decoded.chunks(width.max(1))) {
        let error: f64 = row.iter().zip(decoded).map(|(value, decoded)| (f64::from(*value) - f64::from(*decoded)).powi(2)).sum();
        let size: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        if size > 0.0 {
            worst = worst.max(error / size);
        }
        all = [all[0] + error, all[1] + size];
    }
    [all[0] / all[1], worst]
}

fn recorded(path: &Path, name: Option<&str>, rows: Option<usize>) -> anyhow::Result<(Vec<f32>, BlockShape)> {
    let file = TensorFile::open(path)?;
    let length = |name: &String| file.raw(name).map_or(0, |(_, bytes)| bytes.len());
    let largest = || file.names().map(|names| names.into_iter().max_by_key(length));
    let name = match name {
        Some(name) => name.to_owned(),
        None => largest()?.ok_or_else(|| CoreError::format(path, "it holds no tensor"))?,
    };
    let tensor = file.tensor(&name, Some(Kind::Float), Device::Cpu)?;
    let width = tensor.size().last().map_or(1, |width| *width as usize);
    let all = tensor.numel() / width.max(1);
    let rows = rows.unwrap_or(all).min(all);
    let bytes = tensors::bytes(&tensor)?;
    let values = bytes.as_chunks::<4>().0.iter().take(rows * width).map(|word| f32::from_ne_bytes(*word)).collect();
    Ok((values, BlockShape { rows, width }))
}
