//! Lists of interventions in JSON files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use circuitlab_core::Error as CoreError;
use circuitlab_core::tensors::TensorFile;
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::change::Target;
use super::supernode::{Supernode, of_value};
use super::{Change, Intervention, Mode, Positions, Want};
use crate::{Error, Result};

/// Interventions with a name, as a file holds them.
#[derive(Debug)]
pub struct Named {
    /// What they are called.
    pub name: String,
    /// What is changed.
    pub interventions: Vec<Intervention>,
    /// What stays.
    pub mode: Mode,
    /// Activations or pre-activations.
    pub want: Want,
    /// How many tokens are to be added to the prompt, where the text is to be continued.
    pub new_tokens: Option<usize>,
}

/// One of the list. The last four are what other tools note beside it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    interventions: Vec<Value>,
    #[serde(default)]
    constrained_layers: Option<(usize, usize)>,
    #[serde(default = "yes")]
    freeze_attention: bool,
    #[serde(default = "yes")]
    apply_activation_function: bool,
    #[serde(default)]
    max_new_tokens: Option<usize>,
    #[serde(default = "yes")]
    greedy: bool,
    #[serde(default, rename = "note")]
    _note: Option<Value>,
    #[serde(default, rename = "text")]
    _text: Option<Value>,
    #[serde(default, rename = "baseline_text")]
    _baseline_text: Option<Value>,
    #[serde(default, rename = "max_abs_logit_change")]
    _max_abs_logit_change: Option<Value>,
}

/// One change, where it is no list of four.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    layer: Option<usize>,
    position: Option<Value>,
    feature: Option<usize>,
    supernode: Option<String>,
    vector: Option<Value>,
    set: Option<f64>,
    scale: Option<f64>,
    add: Option<f64>,
    steer: Option<f64>,
    #[serde(default)]
    ablate: bool,
}

fn yes() -> bool {
    true
}

/// Reads a list of interventions: a JSON list, or an object whose `interventions` is one and whose `supernodes` adds to the known ones.
///
/// # Errors
/// A file that cannot be read, and entries that say nothing sensible; which one is told.
pub fn read_interventions(path: &Path, supernodes: &[Supernode]) -> Result<Vec<Named>> {
    let text = fs::read_to_string(path).map_err(CoreError::io("read", path))?;
    let wrong = |message: String| Error::from(CoreError::format(path, message));
    let file: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("not valid JSON: {error}")))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    of_file(&file, supernodes, folder).map_err(|error| wrong(error.to_string()))
}

fn of_file(file: &Value, supernodes: &[Supernode], folder: &Path) -> Result<Vec<Named>> {
    let mut known = supernodes.to_vec();
    if file.get("supernodes").is_some() {
        known.extend(of_value(file)?);
    }
    let list = file.get("interventions").unwrap_or(file).as_array();
    let list =
        list.ok_or_else(|| Error::Invalid("expected a list of interventions, or an object with a list `interventions`".to_owned()))?;
    let reader = Reader { supernodes: &known, folder };
    let mut names = BTreeSet::new();
    let named = |(place, entry): (usize, &Value)| {
        let called = entry.get("name").and_then(Value::as_str).map_or_else(|| format!("number {place}"), |name| format!("`{name}`"));
        let named = reader.named(entry).map_err(|error| Error::Invalid(format!("intervention {called}: {error}")))?;
        if !names.insert(named.name.clone()) {
            return Err(Error::Invalid(format!("two interventions have the name {called}")));
        }
        Ok(named)
    };
    list.iter().enumerate().map(named).collect()
}

struct Reader<'a> {
    supernodes: &'a [Supernode],
    folder: &'a Path,
}

impl Reader<'_> {
    fn named(&self, entry: &Value) -> Result<Named> {
        let entry: Entry = read(entry)?;
        if !entry.greedy {
            return Err(Error::Invalid("`greedy` is false; a list continues texts by the likeliest tokens".to_owned()));
        }
        let mut interventions = Vec::new();
        for change in &entry.interventions {
            interventions.extend(self.change(change).map_err(|error| Error::Invalid(format!("`{change}`: {error}")))?);
        }
        let mode = match entry.constrained_layers {
            Some((first, end)) => Mode::Constrained(first..end),
            None if entry.freeze_attention => Mode::FrozenAttention,
            None => Mode::Free,
        };
        let want = if entry.apply_activation_function { Want::Activations } else { Want::PreActivations };
        if entry.max_new_tokens.is_some() && mode.is_constrained() {
            return Err(Error::Invalid("`constrained_layers` has no place where a text is continued".to_owned()));
        }
        Ok(Named { name: entry.name, interventions, mode, want, new_tokens: entry.max_new_tokens })
    }

    fn change(&self, value: &Value) -> Result<Vec<Intervention>> {
        if let Value::Array(four) = value {
            let [layer, position, feature, number] = &four[..] else {
                return Err(Error::Invalid("expected [layer, position, feature, value]".to_owned()));
            };
            let place = positions(position)?;
            return Ok(vec![Intervention::feature(read(layer)?, place, read(feature)?, Change::Set(read(number)?))]);
        }
        let words: Words = read(value)?;
        match &words {
            Words { supernode: Some(name), layer: None, position: None, feature: None, vector: None, steer: None, .. } => {
                Ok(Supernode::find(self.supernodes, name)?.interventions(words.change()?))
            }
            Words { layer: Some(layer), position: Some(position), supernode: None, .. } => {
                let (layer, positions) = (*layer, positions(position)?);
                let target = match (&words.vector, words.feature, words.steer) {
                    (Some(vector), None, Some(times)) if words.numbers() == 1 => Target::Direction(self.vector(vector)? * times),
                    (None, Some(feature), Some(times)) if words.numbers() == 1 => Target::Decoder { feature, times },
                    (None, Some(feature), None) => Target::Feature { feature, change: words.change()? },
                    _ => return Err(Error::Invalid("expected a `feature`, or a `vector` with `steer`".to_owned())),
                };
                Ok(vec![Intervention { layer, positions, target }])
            }
            _ => Err(Error::Invalid("expected `layer`, `position` and `feature`, or a `supernode`".to_owned())),
        }
    }

    /// Numbers, or `FILE#NAME`, a tensor of a safetensors file beside this one.
    fn vector(&self, value: &Value) -> Result<Tensor> {
        let Value::String(place) = value else {
            let numbers: Vec<f32> = read(value)?;
            return Ok(Tensor::from_slice(&numbers));
        };
        let (file, name) = place.rsplit_once('#').ok_or_else(|| Error::Invalid(format!("`{place}` is no vector; expected FILE#TENSOR")))?;
        Ok(TensorFile::open(&self.folder.join(file))?.tensor(name, Some(Kind::Float), Device::Cpu)?)
    }
}

impl Words {
    /// How many numbers say what becomes of it.
    fn numbers(&self) -> usize {
        [self.set, self.scale, self.add, self.steer].iter().flatten().count() + usize::from(self.ablate)
    }

    fn change(&self) -> Result<Change> {
        let change = match self {
            Self { set: Some(value), .. } => Change::Set(*value),
            Self { scale: Some(factor), .. } => Change::Scale(*factor),
            Self { add: Some(value), .. } => Change::Add(*value),
            _ => Change::ABLATE,
        };
        if self.numbers() == 1 {
            return Ok(change);
        }
        Err(Error::Invalid("expected one of `set`, `scale`, `add`, `steer` with a number, or `ablate: true`".to_owned()))
    }
}

/// A number, `"2:5"`, or `["slice", first or null, end or null]`.
fn positions(value: &Value) -> Result<Positions> {
    match value {
        Value::String(text) => text.parse(),
        Value::Array(_) => {
            let (word, first, end): (String, Option<usize>, Option<usize>) = read(value)?;
            if word != "slice" {
                return Err(Error::Invalid(format!("`{value}`: expected [\"slice\", first, end]")));
            }
            Ok(end.map_or(Positions::From(first.unwrap_or(0)), |end| Positions::Range(first.unwrap_or(0)..end)))
        }
        _ => Ok(Positions::At(read(value)?)),
    }
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|error| Error::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_file(file: &Value) -> Result<Vec<Named>> {
        of_file(file, &[], Path::new("."))
    }

    #[test]
    fn what_other_tools_write_is_read() {
        let file = json!([
            {"name": "a", "interventions": [[0, 2, 214, 10.5]], "constrained_layers": [0, 4], "freeze_attention": true,
             "apply_activation_function": false, "max_abs_logit_change": 2.3},
            {"name": "b", "interventions": [[1, ["slice", 2, null], 0, 4.0]], "constrained_layers": null, "freeze_attention": false,
             "max_new_tokens": 6, "greedy": true, "note": "x", "text": "y", "baseline_text": "z"},
        ]);
        let named = read_file(&file).expect("reads");
        assert_eq!((&named[0].mode, named[0].want), (&Mode::Constrained(0..4), Want::PreActivations));
        assert_eq!((&named[1].mode, named[1].want, named[1].new_tokens), (&Mode::Free, Want::Activations, Some(6)));
        assert_eq!(named[1].interventions[0].positions, Positions::From(2));
    }

    #[test]
    fn changes_may_be_words() {
        let file = json!({
            "supernodes": {"rhyme": ["3/5/120", "4/5/7"]},
            "interventions": [{"name": "a", "interventions": [
                {"supernode": "rhyme", "scale": -1.0},
                {"layer": 1, "position": "2:5", "feature": 3, "ablate": true},
                {"layer": 1, "position": 2, "feature": 3, "steer": 2.5},
                {"layer": 1, "position": ":", "vector": [1.0, 2.0], "steer": 2.0},
            ]}],
        });
        let named = read_file(&file).expect("reads");
        let targets: Vec<String> = named[0].interventions.iter().map(|one| format!("{} {:?}", one.positions, one.target)).collect();
        assert_eq!(targets.len(), 5);
        assert!(
            targets[1].contains("7, change: Scale(-1.0)") && targets[2].contains("2:5 Feature { feature: 3, change: Set(0.0)"),
            "{targets:?}"
        );
        assert!(targets[3].contains("Decoder { feature: 3, times: 2.5 }") && targets[4].contains("Direction"), "{targets:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = |change: Value| json!([{"name": "a", "interventions": [change]}]);
        for (file, says) in [
            (json!(3), "a list of interventions"),
            (json!([{"interventions": []}]), "number 0: missing field `name`"),
            (json!([{"name": "a", "interventions": [], "freeze": 1}]), "`a`: unknown field `freeze`, expected one of `name`"),
            (json!([{"name": "a", "interventions": []}, {"name": "a", "interventions": []}]), "two interventions have the name `a`"),
            (one(json!([1, 2, 3])), "expected [layer, position, feature, value]"),
            (one(json!([1, -2, 3, 4.0])), "expected usize"),
            (one(json!([1, "x", 3, 4.0])), "`x` is no position"),
            (one(json!({"layer": 1, "position": 2, "feature": 3})), "expected one of `set`"),
            (one(json!({"layer": 1, "position": 2, "feature": 3, "set": 1.0, "add": 1.0})), "expected one of `set`"),
            (one(json!({"supernode": "x", "set": 1.0})), "no supernode `x`"),
            (one(json!({"layer": 1, "position": 2, "vector": "x", "steer": 1.0})), "expected FILE#TENSOR"),
            (one(json!({"feature": 3, "set": 1.0})), "or a `supernode`"),
        ] {
            let error = read_file(&file).expect_err("wrong").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
