//! Metric sinks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use circuitlab_core::testing::metric::{conforms, csv_rows};
use circuitlab_core::{MetricSink, Record, Registry, Spec};

fn check(name: &str, read: impl Fn(&Path) -> Vec<Record>) {
    circuitlab_plugins::link();
    let registry = Registry::linked().expect("no name twice");
    conforms(|| registry.build::<dyn MetricSink>(&Spec::named(name)).expect("known"), read);
}

#[test]
fn jsonl_conforms() {
    check("jsonl", |run| {
        let text = fs::read(run.join(Record::FILE)).expect("written");
        text.split(|byte| *byte == b'\n').filter_map(Record::from_line).collect()
    });
}

#[test]
fn csv_conforms() {
    check("csv", |run| {
        let mut rows = csv_rows(&fs::read_to_string(run.join("metrics.csv")).expect("written")).into_iter();
        let header = rows.next().unwrap_or_default();
        let record = |row: Vec<String>| {
            let mut record = Record::new(row[0].parse().expect("a step"));
            for (name, field) in header.iter().zip(&row).skip(1).filter(|(_, field)| !field.is_empty()) {
                record.push(name, field.parse().expect("a number"));
            }
            record
        };
        rows.map(record).collect()
    });
}

/// The fields of a protobuf message: number, and its bytes or, where it is a varint, its value.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8], u64)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (mut value, mut length) = (0, 0);
        match key & 7 {
            0 => value = varint(&mut bytes),
            1 => length = 8,
            2 => length = varint(&mut bytes) as usize,
            _ => length = 4,
        }
        let (field, rest) = bytes.split_at(length);
        fields.push((key >> 3, field, value));
        bytes = rest;
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let length = bytes.iter().take_while(|byte| **byte >= 0x80).count() + 1;
    let (varint, rest) = bytes.split_at(length);
    *bytes = rest;
    varint.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// The messages of an event file up to where it is torn.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        if rest.len() < length + 8 {
            break;
        }
        messages.push(&rest[4..4 + length]);
        bytes = &rest[length + 8..];
    }
    messages
}

/// Adds an event as TensorBoard does: the start of a session voids its step and all later ones.
fn take_event(records: &mut BTreeMap<u64, Record>, event: &[u8]) {
    let fields_of_event = fields(event);
    let of = |number: u64| fields_of_event.iter().find(|(found, ..)| *found == number);
    let step = of(2).map_or(0, |(_, _, value)| *value);
    if of(7).is_some() {
        records.split_off(&step);
    }
    let Some((_, summary, _)) = of(5) else { return };
    let record = records.entry(step).or_insert_with(|| Record::new(step));
    for (_, value, _) in fields(summary) {
        let value = fields(value);
        let name = String::from_utf8(value[0].1.to_vec()).expect("text");
        record.push(name, f64::from(f32::from_le_bytes(value[1].1.try_into().expect("four bytes"))));
    }
}

#[test]
fn tensorboard_conforms() {
    check("tensorboard", |run| {
        let entries = fs::read_dir(run).expect("the run").map(|entry| entry.expect("an entry").path());
        let mut files: Vec<PathBuf> = entries.collect();
        files.sort();
        let mut records = BTreeMap::new();
        for file in files {
            let bytes = fs::read(file).expect("written");
            for event in messages(&bytes) {
                take_event(&mut records, event);
            }
        }
        records.into_values().collect()
    });
}
