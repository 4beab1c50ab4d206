//! Which plots there are, and their files.

use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::Error as CoreError;
use circuitlab_core::error::catch_panic;
use circuitlab_core::files::write_atomic;

use super::super::{Record, names};
use super::chart::{self, Panel};
use super::series::{self, Series};
use crate::Result;

/// A file, and how its panels come from the records.
struct Plot {
    file: &'static str,
    panels: fn(&[Record]) -> Vec<Panel>,
}

const PLOTS: [Plot; 6] = [
    Plot { file: "loss.svg", panels: loss },
    Plot { file: "explained_variance.svg", panels: explained_variance },
    Plot { file: "l0.svg", panels: l0 },
    Plot { file: "dead_features.svg", panels: dead_features },
    Plot { file: "schedule.svg", panels: schedule },
    Plot { file: "throughput.svg", panels: throughput },
];

/// Draws every plot for which there is a finite figure into `folder`, which is made if need be, and returns the files.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(records: &[Record], folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
    let mut written = Vec::new();
    for plot in &PLOTS {
        let mut panels = (plot.panels)(records);
        panels.retain(|panel| !panel.series.is_empty());
        if panels.is_empty() {
            continue;
        }
        // A drawing library's slip must not end a run of days.
        let svg = catch_panic::<_, crate::Error>(plot.file, || chart::svg(&panels))?;
        let path = folder.join(plot.file);
        write_atomic(&path, |out| out.write_all(svg.as_bytes()))?;
        written.push(path);
    }
    Ok(written)
}

fn loss(records: &[Record]) -> Vec<Panel> {
    vec![Panel {
        title: "Loss terms",
        unit: "loss per token",
        logarithmic: true,
        series: series::under(records, "loss/", names::LOSS_TOTAL),
    }]
}

fn explained_variance(records: &[Record]) -> Vec<Panel> {
    let mut all = series::layers(records, names::EXPLAINED_VARIANCE);
    all.extend(one(records, names::EXPLAINED_VARIANCE, "all layers"));
    vec![Panel { title: "Explained variance", unit: "share of variance", logarithmic: false, series: all }]
}

fn l0(records: &[Record]) -> Vec<Panel> {
    let layers = series::layers(records, names::L0);
    vec![
        linear("Active features per token, all layers", "features / token", one(records, names::L0, "all layers")),
        Panel { title: "Active features per token, each layer", unit: "features / token", logarithmic: true, series: layers },
    ]
}

fn dead_features(records: &[Record]) -> Vec<Panel> {
    let layers = series::layers(records, names::DEAD_FEATURES);
    vec![
        linear("Dead features, all layers", "features", one(records, names::DEAD_FEATURES, "all layers")),
        linear("Dead features, each layer", "features", layers),
    ]
}

fn schedule(records: &[Record]) -> Vec<Panel> {
    vec![
        linear("Learning rate", "per step", one(records, names::LEARNING_RATE, "learning rate")),
        linear("Sparsity weight", "lambda", one(records, names::LAMBDA, "lambda")),
    ]
}

fn throughput(records: &[Record]) -> Vec<Panel> {
    vec![
        linear("Throughput", "tokens / s", one(records, names::TOKENS_PER_SECOND, "tokens / s")),
        linear("Model FLOP utilisation", "share of peak", one(records, names::MODEL_FLOP_UTILISATION, "utilisation")),
    ]
}

fn linear(title: &'static str, unit: &'static str, series: Vec<Series>) -> Panel {
    Panel { title, unit, logarithmic: false, series }
}

fn one(records: &[Record], name: &str, label: &str) -> Vec<Series> {
    series::single(records, name, label).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A run of `steps` logged steps over `layers` layers, shaped like a real one.
    fn run(steps: u64, layers: usize) -> Vec<Record> {
        let at = |i: u64| {
            let t = i as f64 / steps as f64;
            let noise = ((i * 7919) % 101) as f64 / 101.0 - 0.5;
            let mse = 40.0 + 900.0 * (-8.0 * t).exp() * (1.0 + 0.1 * noise);
            let sparsity = 30.0 * t * (1.0 + 0.1 * noise);
            let mut record = Record::new(i * 50)
                .with(names::LOSS_TOTAL, mse + sparsity)
                .with("loss/reconstruction", mse)
                .with("loss/sparsity", sparsity)
                .with("loss/pre_activation", 0.3 * t)
                .with(names::EXPLAINED_VARIANCE, 0.85 - 0.8 * (-7.0 * t).exp() + 0.01 * noise)
                .with(names::L0, 4000.0 * (-6.0 * t).exp() + 60.0)
                .with(names::DEAD_FEATURES, (2000.0 * t * t).floor())
                .with(names::LEARNING_RATE, 2e-4 * (t * 20.0).min(1.0).min((1.0 - t) * 5.0))
                .with(names::LAMBDA, 2.0 * t)
                .with(names::TOKENS_PER_SECOND, 8.0e4 * (1.0 - (-30.0 * t).exp()) + 3000.0 * noise);
            for layer in 0..layers {
                let l = layer as f64 / layers as f64;
                record.push(
                    names::of_layer(names::EXPLAINED_VARIANCE, layer),
                    0.95 - 0.3 * l - 0.8 * (-(7.0 - 3.0 * l) * t).exp() + 0.01 * noise,
                );
                record.push(names::of_layer(names::L0, layer), (400.0 * (-6.0 * t).exp() + 3.0) * (1.0 + l));
                record.push(names::of_layer(names::DEAD_FEATURES, layer), (150.0 * t * t * (1.0 + l)).floor());
            }
            record
        };
        (0..=steps).map(at).collect()
    }

    fn draw(records: &[Record]) -> Vec<(String, String)> {
        let folder = tempfile::tempdir().expect("a folder");
        let files = write(records, folder.path()).expect("draws");
        let read = |path: &PathBuf| fs::read_to_string(path).expect("written");
        files.iter().map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), read(path))).collect()
    }

    #[test]
    fn a_run_gets_all_six_plots_of_modest_size() {
        let plots = draw(&run(20_000, 26));
        assert_eq!(plots.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), PLOTS.map(|plot| plot.file));
        for (name, svg) in &plots {
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
            assert!(svg.len() < 2_000_000, "{name}: {} bytes", svg.len());
            assert!(svg.contains("step"), "{name} names its x axis");
        }
        if let Some(folder) = std::env::var_os("CIRCUITLAB_KEEP_PLOTS") {
            write(&run(400, 12), Path::new(&folder)).expect("draws");
        }
    }

    #[test]
    fn hostile_records_are_drawn_or_left_out() {
        assert!(draw(&[]).is_empty());
        assert!(draw(&[Record::new(1).with(names::LOSS_TOTAL, f64::NAN)]).is_empty());
        assert_eq!(draw(&[Record::new(1).with(names::LOSS_TOTAL, 3.0)]).len(), 1);
        for value in [0.0, -1.0, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY, 1e-300] {
            let constant: Vec<_> = (0..5).map(|step| Record::new(step).with(names::LOSS_TOTAL, value).with(names::LAMBDA, value)).collect();
            draw(&constant);
        }
        draw(&[Record::new(0).with(names::L0, 1.0), Record::new(u64::MAX).with(names::L0, 2.0)]);
        draw(&[Record::new(1).with("loss/<&>\"", 1.0), Record::new(1).with("loss/l/layer_18446744073709551616", 2.0)]);
    }

    proptest! {
        #[test]
        fn any_figures_are_drawn_without_panic(
            figures in prop::collection::vec((any::<u64>(), prop::num::f64::ANY, prop::num::f64::ANY), 0..20),
        ) {
            let record = |(step, a, b): &(u64, f64, f64)| {
                Record::new(*step).with(names::LOSS_TOTAL, *a).with("loss/x", *b).with(names::of_layer(names::L0, 2), *a).with(names::L0, *b)
            };
            draw(&figures.iter().map(record).collect::<Vec<_>>());
        }
    }
}
