//! `csv`: `metrics.csv`, a row for each record and a column for each name, for spreadsheets and plotting tools.
//!
//! The header is `step` and the names in the order in which they came. Quoting is that of RFC 4180, line ends are `\n`. A figure
//! that a record does not have is an empty field; those that are no numbers are `NaN`, `inf` and `-inf`.

use std::fs;
use std::path::Path;

use circuitlab_core::files::write_atomic;
use circuitlab_core::{Construct, Error, MetricSink, Record, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::append::{AppendFile, not_open};

register!(metric_sink "csv" => CsvConfig, "metrics.csv, one row per record and one column per figure");

/// The file in a run folder.
const FILE: &str = "metrics.csv";

/// The name of the first column, which no figure may therefore have.
const STEP: &str = "step";

/// Config of the metric sink `csv`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CsvConfig {}

impl Construct for CsvConfig {
    type Output = Csv;

    fn construct(&self) -> Result<Csv> {
        Ok(Csv::default())
    }
}

/// Appends to a `metrics.csv`.
#[derive(Debug, Default)]
pub struct Csv {
    table: Option<Table>,
}

#[derive(Debug)]
struct Table {
    file: AppendFile,
    /// The header as it is on disk; none before the first record.
    columns: Vec<String>,
}

impl MetricSink for Csv {
    fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()> {
        let path = run.join(FILE);
        let Some(step) = after_step else {
            self.table = Some(Table { file: AppendFile::begin(&path)?, columns: Vec::new() });
            return Ok(());
        };
        let columns = if path.exists() { rewrite(&path, &[], step)? } else { Vec::new() };
        self.table = Some(Table { file: AppendFile::go_on(&path)?, columns });
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let table = self.table.as_mut().ok_or_else(|| not_open("csv"))?;
        let names = [STEP].into_iter().chain(record.iter().map(|(name, _)| name));
        let new: Vec<&str> = names.filter(|name| !table.columns.iter().any(|column| column == name)).collect();
        if !new.is_empty() {
            let path = table.file.path().to_path_buf();
            table.columns = rewrite(&path, &new, u64::MAX)?;
            // The old handle is that of the file which was replaced.
            table.file = AppendFile::go_on(&path)?;
        }
        table.file.append(row(record, &table.columns).as_bytes())
    }

    fn sync(&mut self) -> Result<()> {
        self.table.as_ref().ok_or_else(|| not_open("csv"))?.file.sync()
    }
}

/// Rewrites the file with `new` columns at the right and its whole rows of steps up to and including `last_step`; gives the header.
fn rewrite(path: &Path, new: &[&str], last_step: u64) -> Result<Vec<String>> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let expected = || Error::format(path, "expected a header that begins with `step`; move the file away if it is not this run's");
    let (old, rows) = split_header(&bytes).ok_or_else(expected)?;
    let columns: Vec<String> = old.iter().cloned().chain(new.iter().map(|name| (*name).to_owned())).collect();
    let header: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    write_atomic(path, |out| {
        if !header.is_empty() {
            writeln!(out, "{}", header.join(","))?;
        }
        for row in rows.split_inclusive(|byte| *byte == b'\n') {
            if step_of(row, old.len()).is_some_and(|step| step <= last_step) {
                out.write_all(row.trim_ascii_end())?;
                writeln!(out, "{}", ",".repeat(new.len()))?;
            }
        }
        Ok(())
    })?;
    Ok(columns)
}

/// The names of the header and the bytes after it; no names where the file is empty, and nothing where it is no such table.
fn split_header(bytes: &[u8]) -> Option<(Vec<String>, &[u8])> {
    if bytes.is_empty() {
        return Some((Vec::new(), bytes));
    }
    let (mut names, mut name, mut in_quotes) = (Vec::new(), Vec::new(), false);
    let mut places = bytes.iter().copied().enumerate().peekable();
    while let Some((at, byte)) = places.next() {
        match byte {
            // Within quotes, two stand for one.
            b'"' if in_quotes && places.next_if(|(_, next)| *next == b'"').is_some() => name.push(b'"'),
            b'"' => in_quotes = !in_quotes,
            b',' | b'\n' if !in_quotes => {
                names.push(String::from_utf8(std::mem::take(&mut name)).ok()?);
                if byte == b'\n' {
                    return names.first().is_some_and(|first| first == STEP).then_some((names, &bytes[at + 1..]));
                }
            }
            byte => name.push(byte),
        }
    }
    None
}

/// The step of a whole row of `columns` fields; nothing for one that is torn.
fn step_of(row: &[u8], columns: usize) -> Option<u64> {
    // Rows hold numbers only, so that no comma or line end in them is quoted.
    let text = std::str::from_utf8(row.strip_suffix(b"\n")?).ok()?;
    let mut fields = text.split(',');
    let step = fields.next()?.parse().ok();
    step.filter(|_| fields.count() + 1 == columns)
}

fn row(record: &Record, columns: &[String]) -> String {
    // The shortest text that is read back as the same number.
    let figures = columns.iter().skip(1).map(|name| record.get(name).map_or_else(String::new, |value| format!("{value:?}")));
    let fields: Vec<String> = [record.step.to_string()].into_iter().chain(figures).collect();
    format!("{}\n", fields.join(","))
}

fn quoted(name: &str) -> String {
    if name.contains([',', '"', '\r', '\n']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use circuitlab_core::testing::metric::csv_rows;
    use proptest::prelude::*;

    use super::*;

    /// Step and figures of each row.
    fn read(text: &str) -> Vec<Record> {
        let mut rows = csv_rows(text).into_iter();
        let Some(header) = rows.next() else { return Vec::new() };
        assert_eq!(header[0], "step");
        let record = |row: Vec<String>| {
            assert_eq!(row.len(), header.len(), "every row is as wide as the header");
            let figures = header.iter().zip(&row).skip(1).filter(|(_, field)| !field.is_empty());
            let record = Record::new(row[0].parse().expect("a step"));
            figures.fold(record, |record, (name, field)| record.with(name, field.parse().expect("a number")))
        };
        rows.map(record).collect()
    }

    /// Step, names and bits, in the order of names: NaN is equal to itself, and not 0 to -0.
    fn bits(records: &[Record]) -> Vec<(u64, Vec<(String, u64)>)> {
        let figure = |(name, value): (&str, f64)| (name.to_owned(), if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() });
        let sorted = |record: &Record| {
            let mut figures: Vec<_> = record.iter().map(figure).collect();
            figures.sort();
            figures
        };
        records.iter().map(|record| (record.step, sorted(record))).collect()
    }

    fn opened(run: &Path, after_step: Option<u64>) -> Csv {
        let mut sink = Csv::default();
        sink.open(run, after_step).expect("opens");
        sink
    }

    fn write(sink: &mut Csv, records: &[Record]) {
        for record in records {
            sink.write(record).expect("writes");
        }
    }

    fn text(run: &Path) -> String {
        fs::read_to_string(run.join(FILE)).expect("written")
    }

    #[test]
    fn the_table_grows_to_the_right_and_is_quoted() {
        let run = tempfile::tempdir().expect("a folder");
        let mut sink = opened(run.path(), None);
        sink.write(&Record::new(10).with("l0", 1e-7).with("b", f64::NAN)).expect("writes");
        assert_eq!(text(run.path()), "step,l0,b\n10,1e-7,NaN\n");
        sink.write(&Record::new(20).with("a, \"c\"", f64::NEG_INFINITY).with("l0", 3.0)).expect("writes");
        assert_eq!(text(run.path()), "step,l0,b,\"a, \"\"c\"\"\"\n10,1e-7,NaN,\n20,3.0,,-inf\n");
    }

    #[test]
    fn a_torn_last_row_is_dropped_on_resume() {
        let run = tempfile::tempdir().expect("a folder");
        write_atomic(&run.path().join(FILE), |out| out.write_all(b"step,a\n1,0.5\n2\n3,\n4,0.1")).expect("writes");
        opened(run.path(), Some(9)).write(&Record::new(4).with("a", 0.125)).expect("writes");
        assert_eq!(text(run.path()), "step,a\n1,0.5\n3,\n4,0.125\n");
    }

    #[test]
    fn another_table_is_left_alone() {
        let run = tempfile::tempdir().expect("a folder");
        write_atomic(&run.path().join(FILE), |out| out.write_all(b"time,a\n1,0.5\n")).expect("writes");
        let error = Csv::default().open(run.path(), Some(9)).expect_err("no step").to_string();
        assert!(error.contains("metrics.csv`: expected a header that begins with `step`"), "{error}");
        assert_eq!(text(run.path()), "time,a\n1,0.5\n");
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let name = prop_oneof!["[a-c]", "[a-c,\"\r\n ]{0,4}", any::<String>()].prop_filter("the step's own", |name| name != STEP);
        let figures = prop::collection::vec((name, prop::num::f64::ANY), 0..5);
        let record = |(step, figures): (u64, Vec<(String, f64)>)| {
            figures.into_iter().fold(Record::new(step), |record, (name, value)| record.with(name, value))
        };
        prop::collection::vec((any::<u64>(), figures).prop_map(record), 0..6)
    }

    proptest! {
        #[test]
        fn records_are_read_back_exactly(before in records(), after in records(), step: u64) {
            let run = tempfile::tempdir().expect("a folder");
            let mut sink = opened(run.path(), None);
            write(&mut sink, &before);
            prop_assert_eq!(bits(&read(&text(run.path()))), bits(&before));
            let mut sink = opened(run.path(), Some(step));
            write(&mut sink, &after);
            let kept: Vec<Record> = before.into_iter().filter(|record| record.step <= step).chain(after).collect();
            prop_assert_eq!(bits(&read(&text(run.path()))), bits(&kept));
        }

        #[test]
        fn any_bytes_are_gone_on_with_or_refused(rows: Vec<u8>, whole: bool, step: u64) {
            let run = tempfile::tempdir().expect("a folder");
            let bytes = if whole { [b"step,a\n", rows.as_slice()].concat() } else { rows };
            write_atomic(&run.path().join(FILE), |out| out.write_all(&bytes)).expect("writes");
            match Csv::default().open(run.path(), Some(step)) {
                Ok(()) => prop_assert!(fs::read(run.path().join(FILE)).is_ok()),
                Err(error) => prop_assert!(!whole && !error.to_string().contains('\n'), "{}", error),
            }
        }
    }
}
