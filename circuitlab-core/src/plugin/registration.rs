//! What a plugin tells of itself: a name, a line about it, and how it is made from config.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::catch_plugin;
use crate::{
    ActivationCodec, Error, Explainer, LanguageModel, MetricSink, ParallelismStrategy, Result, SparsityActivation, TextSource, Transcoder,
    config,
};

/// Makes the running thing from its config.
pub trait Construct {
    /// The type that implements the kind's trait.
    type Output;

    /// Builds it.
    ///
    /// # Errors
    /// Settings that are out of range, or files that cannot be read.
    fn construct(&self) -> Result<Self::Output>;
}

/// A config struct that [`register!`](crate::register) gave a name to.
pub trait Registered {
    /// The kind of what it constructs.
    const KIND: Kind;
    /// Its registered name.
    const NAME: &'static str;
}

/// The extension points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`LanguageModel`].
    Model,
    /// [`ActivationCodec`].
    Codec,
    /// [`SparsityActivation`].
    Activation,
    /// [`Transcoder`].
    Transcoder,
    /// [`ParallelismStrategy`].
    Strategy,
    /// [`TextSource`].
    TextSource,
    /// [`MetricSink`].
    MetricSink,
    /// [`Explainer`].
    Explainer,
}

impl Kind {
    /// All kinds, in the order of the pipeline.
    pub const ALL: [Self; 8] =
        [Self::Model, Self::TextSource, Self::Codec, Self::Transcoder, Self::Activation, Self::Strategy, Self::MetricSink, Self::Explainer];

    /// The word that users see.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Codec => "codec",
            Self::Activation => "activation",
            Self::Transcoder => "transcoder",
            Self::Strategy => "strategy",
            Self::TextSource => "text-source",
            Self::MetricSink => "metric-sink",
            Self::Explainer => "explainer",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a component is built from the JSON text of its config.
pub type Make<T> = fn(&str) -> Result<Box<T>>;

/// One constructor, sorted by kind.
#[derive(Debug, Clone, Copy)]
pub enum Factory {
    /// Builds a [`LanguageModel`].
    Model(Make<dyn LanguageModel>),
    /// Builds an [`ActivationCodec`].
    Codec(Make<dyn ActivationCodec>),
    /// Builds a [`SparsityActivation`].
    Activation(Make<dyn SparsityActivation>),
    /// Builds a [`Transcoder`].
    Transcoder(Make<dyn Transcoder>),
    /// Builds a [`ParallelismStrategy`].
    Strategy(Make<dyn ParallelismStrategy>),
    /// Builds a [`TextSource`].
    TextSource(Make<dyn TextSource>),
    /// Builds a [`MetricSink`].
    MetricSink(Make<dyn MetricSink>),
    /// Builds an [`Explainer`].
    Explainer(Make<dyn Explainer>),
}

/// Ties a trait object to its kind.
pub trait Slot: 'static {
    /// The kind.
    const KIND: Kind;

    /// The constructor, when the factory is of this kind.
    fn pick(factory: Factory) -> Option<Make<Self>>;

    /// Wraps, on the host's side, what calls back into the host.
    #[must_use]
    fn shield(made: Box<Self>) -> Box<Self> {
        made
    }
}

macro_rules! slots {
    ($($kind:ident => $trait:ident $(, $shield:path)?);* $(;)?) => {$(
        impl Slot for dyn $trait {
            const KIND: Kind = Kind::$kind;

            fn pick(factory: Factory) -> Option<Make<Self>> {
                match factory {
                    Factory::$kind(make) => Some(make),
                    _ => None,
                }
            }
            $(
                fn shield(made: Box<Self>) -> Box<Self> {
                    $shield(made)
                }
            )?
        }
    )*

        impl Factory {
            /// The kind of what it builds.
            pub const fn kind(self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }
        }
    };
}

slots! {
    Model => LanguageModel, super::guard::shield;
    Codec => ActivationCodec;
    Activation => SparsityActivation;
    Transcoder => Transcoder;
    Strategy => ParallelismStrategy;
    TextSource => TextSource;
    MetricSink => MetricSink;
    Explainer => Explainer;
}

/// A plugin as the registry knows it. Made by [`register!`](crate::register) alone.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) package: &'static str,
    pub(super) version: &'static str,
    pub(super) normalise: fn(&str) -> Result<String>,
    pub(super) schema: fn() -> Result<String>,
    pub(super) factory: Factory,
}

inventory::collect!(Registration);

impl Registration {
    /// The name that configs and flags use, in kebab case.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// One line about it.
    pub const fn summary(&self) -> &'static str {
        self.summary
    }

    /// The package that brought it.
    pub const fn package(&self) -> &'static str {
        self.package
    }

    /// That package's version.
    pub const fn version(&self) -> &'static str {
        self.version
    }

    /// The JSON Schema of its config: fields, types, defaults, and their doc comments.
    ///
    /// # Errors
    /// A config type whose schema cannot be made.
    pub fn schema(&self) -> Result<Value> {
        let text = (self.schema)()?;
        serde_json::from_str(&text).map_err(|error| Error::config(format!("{} `{}`", self.kind(), self.name), error.to_string()))
    }

    /// All settings with their defaults.
    ///
    /// # Errors
    /// A config that has a setting without a default.
    pub fn defaults(&self) -> Result<Map<String, Value>> {
        match serde_json::from_str(&(self.normalise)("{}")?) {
            Ok(Value::Object(settings)) => Ok(settings),
            _ => Err(Error::config(format!("{} `{}`", self.kind(), self.name), "its config is not a table")),
        }
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        self.factory.kind()
    }
}

/// What the macro submits to inventory.
///
/// # Panics
/// While it is compiled, on a name or a summary that is none.
pub const fn submit(
    name: &'static str,
    summary: &'static str,
    package: &'static str,
    version: &'static str,
    normalise: fn(&str) -> Result<String>,
    schema: fn() -> Result<String>,
    factory: Factory,
) -> Registration {
    assert!(is_kebab_case(name), "a plugin's name is in kebab case, such as `my-codec`");
    assert!(is_one_line(summary), "a plugin's summary is one line of plain text");
    Registration { name, summary, package, version, normalise, schema, factory }
}

/// Names stand in chains (`a+b`), in paths (`codec/a`) and in files.
const fn is_kebab_case(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !(bytes[at].is_ascii_lowercase() || bytes[at].is_ascii_digit() || matches!(bytes[at], b'-' | b'_')) {
            return false;
        }
        at += 1;
    }
    !bytes.is_empty()
}

const fn is_one_line(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at].is_ascii_control() {
            return false;
        }
        at += 1;
    }
    true
}

fn parse<C: DeserializeOwned>(what: &str, json: &str) -> Result<C> {
    let value: Value = serde_json::from_str(json).map_err(|error| Error::config(what, error.to_string()))?;
    config::read(what, value)
}

/// Reads a config, fills its defaults in and writes the whole of it back.
///
/// # Errors
/// Settings that the struct refuses.
pub fn normaliser<C: DeserializeOwned + Serialize>(what: &str, json: &str) -> Result<String> {
    catch_plugin(what, || {
        let config: C = parse(what, json)?;
        serde_json::to_string(&config).map_err(|error| Error::config(what, error.to_string()))
    })
}

/// The JSON Schema of a config, as text.
///
/// # Errors
/// A type whose schema cannot be made.
pub fn schema<C: JsonSchema>(what: &str) -> Result<String> {
    catch_plugin(what, || Ok(schemars::schema_for!(C).as_value().to_string()))
}

/// Reads a config and constructs from it; a panic in the constructor is an error that names the plugin.
///
/// # Errors
/// Settings that the struct refuses, and what its constructor returns.
pub fn constructor<C: DeserializeOwned + Construct>(what: &str, json: &str) -> Result<C::Output> {
    catch_plugin(what, || parse::<C>(what, json)?.construct())
}
