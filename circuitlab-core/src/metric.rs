//! Metrics: the figures of one step, and where they go.

use std::fmt::Debug;
use std::path::Path;

use serde_json::{Map, Number, Value};

use crate::Result;

/// Takes the figures of a run as they come.
///
/// Conformance is checked by [`testing::metric`](crate::testing::metric).
pub trait MetricSink: Debug + Send {
    /// Called once, before anything else: begins in a run folder that holds no figures of this sink, or, where `after_step` is
    /// given, goes on after that step. Figures of later steps, which will be made again, and a torn last one are dropped then.
    /// There may be none at all: the process that began the run may have been killed at any moment.
    ///
    /// # Errors
    /// A folder that cannot be written, and one that holds figures where a run begins.
    fn open(&mut self, run: &Path, after_step: Option<u64>) -> Result<()>;

    /// Takes one record. What was handed over survives the end of this process, though perhaps not a power cut.
    ///
    /// # Errors
    /// When the place cannot be written, or was not opened.
    fn write(&mut self, record: &Record) -> Result<()>;

    /// Makes everything so far survive a power cut too: for checkpoints, not for every step.
    ///
    /// # Errors
    /// When the place cannot be written, or was not opened.
    fn sync(&mut self) -> Result<()>;
}

/// The key that holds the step in a JSON line, and that no figure may therefore have.
const STEP: &str = "step";

/// The figures of one step, in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    /// Optimiser steps taken so far.
    pub step: u64,
    values: Vec<(String, f64)>,
}

impl Record {
    /// The file in a run folder that holds one record a line, each as [`Record::to_json`] makes it: what reads a run reads this.
    pub const FILE: &'static str = "metrics.jsonl";

    /// A record without figures.
    pub fn new(step: u64) -> Self {
        Self { step, values: Vec::new() }
    }

    /// Adds a figure, or replaces the one of that name.
    pub fn push(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        match self.values.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.values.push((name, value)),
        }
    }

    /// The same with one figure more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.push(name, value);
        self
    }

    /// The figure of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All figures in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// One flat JSON object; figures that are not finite become `null`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::with_capacity(self.values.len() + 1);
        object.insert(STEP.to_owned(), self.step.into());
        for (name, value) in self.iter().filter(|(name, _)| *name != STEP) {
            object.insert(name.to_owned(), Number::from_f64(value).map_or(Value::Null, Value::Number));
        }
        Value::Object(object)
    }

    /// Reads what [`Record::to_json`] wrote: `null` is NaN, and what is no number is left out.
    pub fn from_json(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        let values = object.iter().filter(|(name, _)| *name != STEP);
        let values = values.filter_map(|(name, value)| match value {
            Value::Null => Some((name.clone(), f64::NAN)),
            value => Some((name.clone(), value.as_f64()?)),
        });
        Some(Self { step: object.get(STEP)?.as_u64()?, values: values.collect() })
    }

    /// Reads a line of [`Record::FILE`]; nothing where it is no record, such as one that a killed process tore.
    pub fn from_line(line: &[u8]) -> Option<Self> {
        Self::from_json(&serde_json::from_slice(line).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_order_and_one_figure_per_name() {
        let record = Record::new(7).with("b", 1.0).with("a", 2.0).with("b", 3.0).with("c", f64::INFINITY).with("step", 0.0);
        assert_eq!(record.to_json().to_string(), r#"{"step":7,"b":3.0,"a":2.0,"c":null}"#);
        let back = Record::from_json(&record.to_json()).expect("its own output");
        assert_eq!((back.step, back.get("a"), back.get("d")), (7, Some(2.0), None));
        assert!(back.get("c").is_some_and(f64::is_nan));
        let line = format!("{} ", record.to_json());
        assert_eq!(Record::from_line(line.as_bytes()).map(|record| record.step), Some(7));
        assert_eq!(Record::from_line(&line.as_bytes()[..20]), None);
    }
}
