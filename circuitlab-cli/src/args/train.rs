//! `circuitlab train`.

use std::path::PathBuf;

use circuitlab::train::{Layout, PlanFor};
use clap::Args;

/// Trains a transcoder.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The cache to train on: a folder, or a URL such as `s3://bucket/cache`.
    #[arg(long, value_name = "CACHE", conflicts_with_all = ["model", "text"])]
    pub cache: Option<PathBuf>,
    /// In place of a cache: a model (a folder, or `hf:ORG/NAME[@REVISION]`) whose activations are made as they are needed.
    #[arg(long, value_name = "DIR|hf:ORG/NAME", requires = "text")]
    pub model: Option<String>,
    /// The text for `--model`: files, folders, patterns. `--set activations.settings.KEY=VALUE` takes all settings of `cache`.
    #[arg(long, num_args = 1.., value_name = "PATH", requires = "model")]
    pub text: Vec<PathBuf>,
    /// The part of each file that is read, as shares of its bytes, such as `0..0.95`.
    #[arg(long, value_name = "FROM..TO", requires = "model")]
    pub range: Option<String>,
    /// Positions of a context, BOS included.
    #[arg(long, value_name = "TOKENS", requires = "model")]
    pub context: Option<usize>,
    /// The run folder to make.
    #[arg(long, value_name = "RUN")]
    pub out: PathBuf,
    /// TOML file with settings; what `--dry-run` prints is one.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one setting, such as `sparsity.lambda=4`; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The transcoder plugin, such as `clt` or `plt`.
    #[arg(long, value_name = "NAME")]
    pub transcoder: Option<String>,
    /// The sparsity activation plugin, such as `jumprelu`.
    #[arg(long, value_name = "NAME")]
    pub activation: Option<String>,
    /// The parallelism strategy plugin: `single`, or with several processes `ddp`, `fsdp`, `feature-sharded`, `hybrid`; may be given with
    /// `--resume` too.
    #[arg(long, value_name = "NAME")]
    pub strategy: Option<String>,
    /// A metric sink plugin, such as `csv`; may be given again. Those given take the place of `jsonl` and `tensorboard`.
    #[arg(long, value_name = "NAME")]
    pub sink: Vec<String>,
    /// Go on with a run that was interrupted, from its newest checkpoint; where there is none, begin it.
    #[arg(long)]
    pub resume: bool,
    /// Print the resolved config and what the run would cost, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// With `--dry-run`: plan for so many ranks in the layout of the strategy's name (`ddp`, `fsdp`, `feature-sharded`, `hybrid` with its settings), which need not run.
    #[arg(long, value_name = "N", requires = "dry_run")]
    pub ranks: Option<usize>,
    /// With `--dry-run`: plan for this mesh, such as `8x4` or `8x1,sharded`, whatever the strategy.
    #[arg(long, value_name = "DATAxFEATURE[,sharded]", requires = "dry_run")]
    pub mesh: Option<Layout>,
    /// With `--dry-run`: plan for a model of so many layers and this `d_model`, in place of a cache.
    #[arg(long, value_name = "LAYERSxD_MODEL", requires = "dry_run", conflicts_with_all = ["cache", "model"], value_parser = shape)]
    pub shape: Option<(usize, usize)>,
    /// With `--dry-run`: active features of a layer on a row, which the cost of a sparse step is for.
    #[arg(long, value_name = "FEATURES", requires = "dry_run", default_value_t = PlanFor::default().l0)]
    pub l0: f64,
    /// With `--dry-run`: look for the largest transcoder that fits ranks of so much memory, such as `80GB`, under each strategy.
    #[arg(long, value_name = "BYTES", requires = "dry_run", value_parser = bytes)]
    pub memory: Option<u64>,
}

/// `80GB`, `1.5 GiB`, or bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 9] = [
        ("kB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("B", 1.0),
    ];
    let unit = UNITS.iter().find_map(|(unit, size)| text.strip_suffix(unit).map(|number| (number, *size)));
    let (number, size) = unit.unwrap_or((text, 1.0));
    let bytes = number.trim().parse::<f64>().ok().map(|number| number * size);
    match bytes {
        Some(bytes) if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => Err("expected an amount of memory, such as `80GB` or `24GiB`".to_owned()),
    }
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let sizes = text.split_once('x').and_then(|(layers, d_model)| Some((layers.parse().ok()?, d_model.parse().ok()?)));
    sizes.ok_or_else(|| "expected LAYERSxD_MODEL, such as `16x2048`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn amounts_of_memory_are_read() {
        for (text, want) in [("80GB", 80_000_000_000), ("24 GiB", 24 << 30), ("1.5MiB", 3 << 19), ("4096", 4096), ("7B", 7)] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for text in ["", "GB", "-1GB", "80 G", "1e30", "nan", "inf", "0"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
