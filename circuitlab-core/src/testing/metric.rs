//! The suite of metric sinks.
//!
//! ```no_run
//! use circuitlab_core::{MetricSink, Record, Registry, Spec, testing};
//! # fn records(_: &std::path::Path) -> Vec<Record> { Vec::new() }
//! let registry = Registry::linked().expect("no name twice");
//! let make = || registry.build::<dyn MetricSink>(&Spec::named("my-sink")).expect("known");
//! testing::metric::conforms(make, |run| records(&run.join("my-metrics.txt")));
//! ```

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use crate::{Error, MetricSink, Record, Result};

/// Makes a sink that was not opened yet.
type Make<'a> = dyn Fn() -> Box<dyn MetricSink> + 'a;
/// Reads what a sink left in a run folder, in order.
type Read<'a> = dyn Fn(&Path) -> Vec<Record> + 'a;

/// Checks all that [`MetricSink`] promises. `make` builds a sink that takes every figure; `read` is the test's own reader of what
/// the sink leaves in a run folder, as its users would read it: figures that are void are none, and the last may be torn.
///
/// # Panics
/// With the promise that is broken.
pub fn conforms(make: impl Fn() -> Box<dyn MetricSink>, read: impl Fn(&Path) -> Vec<Record>) {
    refuses_what_cannot_be(&make);
    keeps_what_was_written(&make, &read);
    drops_later_steps(&make, &read);
    drops_a_torn_end(&make, &read);
    begins_by_resuming(&make, &read);
    takes_any_number(&make, &read);
}

/// The rows of a table as RFC 4180 has it, for readers of sinks that write one; line ends are `\n`, and a last row without one is
/// left out.
///
/// # Panics
/// Where a quoted field is not closed.
pub fn csv_rows(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => loop {
                match letters.next().expect("a quote that is closed") {
                    '"' if letters.next_if_eq(&'"').is_none() => break,
                    letter => field.push(letter),
                }
            },
            ',' => row.push(std::mem::take(&mut field)),
            '\n' => {
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
            }
            letter => field.push(letter),
        }
    }
    rows
}

/// Figures that `f32` holds exactly, since some formats hold no more; names that text formats must quote; one that comes later.
fn record(step: u64) -> Record {
    let figure = step as f64;
    let record = Record::new(step).with("loss/total", 0.5 - figure).with("l0/layer_3", 1024.0 * figure).with("a, \"b\"\nc", 0.0);
    if step < 3 { record } else { record.with("late", figure / 8.0) }
}

fn opened(make: &Make<'_>, run: &Path, after_step: Option<u64>) -> Box<dyn MetricSink> {
    let mut sink = make();
    sink.open(run, after_step).unwrap_or_else(|error| panic!("it does not open with after_step {after_step:?}: {error}"));
    sink
}

fn write(sink: &mut dyn MetricSink, steps: impl IntoIterator<Item = u64>) {
    for step in steps {
        sink.write(&record(step)).unwrap_or_else(|error| panic!("it does not take step {step}: {error}"));
    }
}

#[track_caller]
fn holds(what: &str, read: &Read<'_>, run: &Path, steps: impl IntoIterator<Item = u64>) {
    let (got, want): (Vec<_>, Vec<_>) = (read(run), steps.into_iter().map(record).collect());
    let fine = got.len() == want.len() && got.iter().zip(&want).all(|(got, want)| same(got, want));
    assert!(fine, "{what}: expected {want:?}, got {got:?}");
}

/// The same figures, in whatever order.
fn same(got: &Record, want: &Record) -> bool {
    let figures = |of: &Record, from: &Record| of.iter().all(|(name, value)| from.get(name) == Some(value));
    got.step == want.step && figures(got, want) && figures(want, got)
}

#[track_caller]
fn refused(what: &str, result: Result<()>) {
    let error = result.expect_err(what);
    assert!(!matches!(error, Error::Panicked { .. }), "{what}: expected an error, not a panic: {error}");
    assert!(!error.to_string().contains('\n'), "an error is one line, not: {error}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for temporary files")
}

fn refuses_what_cannot_be(make: &Make<'_>) {
    refused("it wrote before it was opened", make().write(&record(1)));
    refused("it synced before it was opened", make().sync());
    let (folder, mut sink) = (folder(), make());
    let nowhere = folder.path().join("nowhere");
    refused("it began in a folder that is not there", sink.open(&nowhere, None));
    refused("it wrote though it could not be opened", sink.write(&record(1)));
    refused("it went on in a folder that is not there", make().open(&nowhere, Some(3)));
    assert!(!nowhere.exists(), "it made the run folder, which is not its own");
}

fn keeps_what_was_written(make: &Make<'_>, read: &Read<'_>) {
    let run = folder();
    let mut sink = opened(make, run.path(), None);
    write(&mut *sink, 1..=4);
    holds("while it is open", read, run.path(), 1..=4);
    sink.sync().expect("a working disk");
    write(&mut *sink, 5..=5);
    drop(sink);
    holds("after it was dropped", read, run.path(), 1..=5);
    refused("it began where its figures are already", make().open(run.path(), None));
    holds("after it refused to begin", read, run.path(), 1..=5);
}

fn drops_later_steps(make: &Make<'_>, read: &Read<'_>) {
    let run = folder();
    write(&mut *opened(make, run.path(), None), 1..=6);
    // A process may be killed between going on and the next checkpoint, and more than once.
    for last in [9, 5, 5] {
        let mut sink = opened(make, run.path(), Some(4));
        holds("after step 4, before the next", read, run.path(), 1..=4);
        write(&mut *sink, 5..=last);
        holds("after going on", read, run.path(), 1..=last);
    }
    write(&mut *opened(make, run.path(), Some(5)), 8..=8);
    holds("where no step is dropped", read, run.path(), (1..=5).chain([8]));
    drop(opened(make, run.path(), Some(0)));
    holds("where every step is dropped", read, run.path(), []);
    write(&mut *opened(make, run.path(), Some(0)), 1..=3);
    holds("from the start again", read, run.path(), 1..=3);
}

/// Cuts the last record of the last file at every byte, as a killed process may.
fn drops_a_torn_end(make: &Make<'_>, read: &Read<'_>) {
    let whole = |run: &Path| {
        let mut sink = opened(make, run, None);
        write(&mut *sink, 1..=4);
        let begin = last_file(run).map(|(_, bytes)| bytes);
        write(&mut *sink, 5..=5);
        begin.zip(last_file(run))
    };
    // What keeps its figures elsewhere has no file to tear.
    let Some((begin, (_, end))) = whole(folder().path()) else { return };
    for bytes in begin..end {
        let run = folder();
        let Some((_, (file, _))) = whole(run.path()) else { return };
        OpenOptions::new().write(true).open(&file).and_then(|file| file.set_len(bytes)).expect("its file can be cut");
        let what = format!("with its last record cut by {} bytes", end - bytes);
        let mut sink = opened(make, run.path(), Some(4));
        holds(&what, read, run.path(), 1..=4);
        write(&mut *sink, 5..=6);
        holds(&what, read, run.path(), 1..=6);
    }
}

/// The file whose name comes last, and its length.
fn last_file(run: &Path) -> Option<(PathBuf, u64)> {
    let entries = fs::read_dir(run).expect("the run folder").filter_map(|entry| Some(entry.ok()?.path()));
    let last = entries.filter(|path| path.is_file()).max()?;
    let bytes = fs::metadata(&last).expect("its own file").len();
    Some((last, bytes))
}

fn begins_by_resuming(make: &Make<'_>, read: &Read<'_>) {
    let run = folder();
    drop(opened(make, run.path(), Some(0)));
    holds("without figures", read, run.path(), []);
    write(&mut *opened(make, run.path(), Some(0)), 1..=2);
    holds("where a run was killed before its first figure", read, run.path(), 1..=2);
}

fn takes_any_number(make: &Make<'_>, read: &Read<'_>) {
    let run = folder();
    let mut sink = opened(make, run.path(), None);
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, -0.0];
    for (step, value) in (1..).zip(odd) {
        sink.write(&Record::new(step).with("odd", value).with("plain", 0.25)).unwrap_or_else(|error| panic!("{value}: {error}"));
    }
    sink.write(&Record::new(u64::MAX)).expect("a record without figures");
    drop(sink);
    let records = read(run.path());
    for step in 1..=odd.len() as u64 {
        let plain = records.iter().find(|record| record.step == step).and_then(|record| record.get("plain"));
        assert_eq!(plain, Some(0.25), "the figure beside {}", odd[step as usize - 1]);
    }
}
