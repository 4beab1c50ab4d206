//! The suite that every metric sink of circuitlab goes through, and the look-up by name.

use std::fs;
use std::path::Path;

use circuitlab_core::testing::metric::{conforms, csv_rows};
use circuitlab_core::{MetricSink, Record, Registry, Spec};

use circuitlab_metric_sink_tidy as _;

/// What the sink left in a run folder: lines of one step, which follow each other, are one record.
fn read(run: &Path) -> Vec<Record> {
    let text = fs::read_to_string(run.join("metrics-tidy.csv")).expect("written");
    let mut records: Vec<Record> = Vec::new();
    for row in csv_rows(&text).into_iter().skip(1) {
        let step = row[0].parse().expect("a step");
        if records.last().is_none_or(|record| record.step != step) {
            records.push(Record::new(step));
        }
        if let Some(record) = records.last_mut() {
            record.push(&row[1], row[2].parse().expect("a number"));
        }
    }
    records
}

#[test]
fn tidy_conforms() {
    let registry = Registry::linked().expect("no name twice");
    conforms(|| registry.build::<dyn MetricSink>(&Spec::named("tidy")).expect("builds"), read);
}
