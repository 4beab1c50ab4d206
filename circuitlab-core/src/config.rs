//! Typed config: from JSON values to structs, with errors that name the key and the nearest known one.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind};

use crate::error::nearest;
use crate::plugin::Registered;
use crate::{Error, Result};

/// Names a plugin and holds its settings: `"int8"` or `{ type = "int8", block = 32 }` in a config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Spec {
    /// The registered name.
    pub name: String,
    /// The settings that differ from the plugin's defaults, or all of them once the registry has filled them in.
    pub settings: Map<String, Value>,
}

impl Spec {
    /// A plugin with its default settings.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), settings: Map::new() }
    }

    /// A plugin with the settings of its config struct: the way back from the struct to `type = "int8"`.
    ///
    /// # Errors
    /// [`Error::Config`] when the struct is not written as a table.
    pub fn of<C: Registered + Serialize>(config: &C) -> Result<Self> {
        match serde_json::to_value(config) {
            Ok(Value::Object(settings)) => Ok(Self { name: C::NAME.to_owned(), settings }),
            Ok(_) => Err(Error::config(format!("{} `{}`", C::KIND, C::NAME), "its config is not a table")),
            Err(error) => Err(Error::config(format!("{} `{}`", C::KIND, C::NAME), error.to_string())),
        }
    }

    /// The same with one setting changed.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }
}

impl TryFrom<Value> for Spec {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::String(name) => Ok(Self::named(name)),
            Value::Object(mut settings) => match settings.shift_remove("type") {
                Some(Value::String(name)) => Ok(Self { name, settings }),
                _ => Err("expected a name, or a table with a `type` that is a name".to_owned()),
            },
            _ => Err("expected a name such as `\"int8\"`, or a table such as `{ type = \"int8\" }`".to_owned()),
        }
    }
}

impl From<Spec> for Value {
    fn from(spec: Spec) -> Self {
        if spec.settings.is_empty() {
            return Self::String(spec.name);
        }
        let mut table = Map::new();
        table.insert("type".to_owned(), Self::String(spec.name));
        table.extend(spec.settings);
        Self::Object(table)
    }
}

/// Reads a config struct.
///
/// # Errors
/// [`Error::Config`] with `what`, the path of the key, and for an unknown key the nearest known one.
pub fn read<T: DeserializeOwned>(what: &str, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let place = if path == "." { what.to_owned() } else { format!("{what}, key `{path}`") };
        match unknown_field(&message) {
            Some((field, known)) => {
                let hint = nearest(field, known.iter().copied()).map_or_else(String::new, |name| format!(", did you mean `{name}`?"));
                let known = if known.is_empty() { "it has no settings".to_owned() } else { format!("known: {}", known.join(", ")) };
                Error::config(what, format!("unknown key `{path}`{hint}; {known}"))
            }
            None => Error::config(place, message),
        }
    })
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// The floating-point type of a computation or a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum FloatKind {
    /// 32 bits.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 64 bits.
    #[serde(rename = "f64")]
    F64,
    /// 16 bits with the exponent of `f32`. On CPUs its products are many times slower than those of `f32`.
    #[serde(rename = "bf16")]
    Bf16,
    /// 16 bits, IEEE half.
    #[serde(rename = "f16")]
    F16,
}

impl From<FloatKind> for Kind {
    fn from(kind: FloatKind) -> Self {
        match kind {
            FloatKind::F32 => Self::Float,
            FloatKind::F64 => Self::Double,
            FloatKind::Bf16 => Self::BFloat16,
            FloatKind::F16 => Self::Half,
        }
    }
}

/// A device by name: `cpu`, `cuda` or `cuda:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct DeviceName(pub Device);

impl Default for DeviceName {
    fn default() -> Self {
        Self(Device::Cpu)
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let index = match name {
            "cpu" => return Ok(Self(Device::Cpu)),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|index| index.parse().ok()),
        };
        index
            .map(|index| Self(Device::Cuda(index)))
            .ok_or_else(|| Error::Invalid(format!("unknown device `{name}`; expected `cpu`, `cuda` or `cuda:N`")))
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        match name.0 {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        inner: Inner,
    }

    impl Default for Outer {
        fn default() -> Self {
            Self { inner: Inner { lambda: 1.0 } }
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        lambda: f64,
    }

    #[test]
    fn an_unknown_key_is_named_with_its_path_and_the_nearest_known() {
        let error = read::<Outer>("run.toml", serde_json::json!({"inner": {"lamda": 2.0}})).expect_err("misspelt");
        assert_eq!(error.to_string(), "run.toml: unknown key `inner.lamda`, did you mean `lambda`?; known: lambda");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_path() {
        let error = read::<Outer>("run.toml", serde_json::json!({"inner": {"lambda": "two"}})).expect_err("no number");
        assert!(error.to_string().starts_with("run.toml, key `inner.lambda`: invalid type"), "{error}");
        assert!((read::<Outer>("run.toml", serde_json::json!({})).expect("defaults").inner.lambda - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_spec_is_a_name_or_a_table() {
        let plain: Spec = serde_json::from_str("\"int8\"").expect("a name");
        assert_eq!(plain, Spec::named("int8"));
        let table: Spec = serde_json::from_str(r#"{"type": "int8", "block": 32}"#).expect("a table");
        assert_eq!(table, Spec::named("int8").with("block", 32));
        assert_eq!(serde_json::to_string(&table).expect("plain data"), r#"{"type":"int8","block":32}"#);
        assert!(serde_json::from_str::<Spec>("3").is_err());
        assert!(serde_json::from_str::<Spec>(r#"{"block": 32}"#).is_err());
    }

    #[test]
    fn devices_are_read_and_written_by_name() {
        for name in ["cpu", "cuda:0", "cuda:3"] {
            let device: DeviceName = name.parse().expect("a device");
            assert_eq!(String::from(device), name);
        }
        assert!("gpu".parse::<DeviceName>().is_err());
    }
}
