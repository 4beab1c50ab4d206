//! The one line that makes a type a plugin.

/// Registers a config struct under a name.
///
/// ```
/// use circuitlab_core::{Construct, Documents, Result, TextSource, register};
/// use std::path::Path;
///
/// #[derive(Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// #[serde(default, deny_unknown_fields)]
/// pub struct NothingConfig {}
///
/// #[derive(Debug)]
/// pub struct Nothing;
///
/// impl Construct for NothingConfig {
///     type Output = Nothing;
///     fn construct(&self) -> Result<Nothing> {
///         Ok(Nothing)
///     }
/// }
///
/// impl TextSource for Nothing {
///     fn extensions(&self) -> Vec<String> {
///         vec!["nothing".into()]
///     }
///     fn documents(&self, _: &Path) -> Result<Documents> {
///         Ok(Box::new(std::iter::empty()))
///     }
/// }
///
/// register!(text_source "nothing" => NothingConfig, "no documents at all");
///
/// let registry = circuitlab_core::Registry::linked().expect("no name twice");
/// assert!(registry.list().any(|plugin| plugin.name() == "nothing"));
/// ```
#[macro_export]
macro_rules! register {
    (model $($rest:tt)*) => { $crate::register!(@ Model "model" model $($rest)*); };
    (codec $($rest:tt)*) => { $crate::register!(@ Codec "codec" codec $($rest)*); };
    (activation $($rest:tt)*) => { $crate::register!(@ Activation "activation" activation $($rest)*); };
    (transcoder $($rest:tt)*) => { $crate::register!(@ Transcoder "transcoder" transcoder $($rest)*); };
    (strategy $($rest:tt)*) => { $crate::register!(@ Strategy "strategy" strategy $($rest)*); };
    (text_source $($rest:tt)*) => { $crate::register!(@ TextSource "text-source" text_source $($rest)*); };
    (metric_sink $($rest:tt)*) => { $crate::register!(@ MetricSink "metric-sink" metric_sink $($rest)*); };
    (@ $kind:ident $word:literal $guard:ident $name:literal => $config:ty, $summary:literal) => {
        impl $crate::plugin::Registered for $config {
            const KIND: $crate::plugin::Kind = $crate::plugin::Kind::$kind;
            const NAME: &'static str = $name;
        }

        const _: () = {
            const WHAT: &str = concat!($word, " `", $name, "`");
            $crate::plugin::private::inventory::submit! {
                $crate::plugin::private::submit(
                    $name,
                    $summary,
                    env!("CARGO_PKG_NAME"),
                    env!("CARGO_PKG_VERSION"),
                    |json| $crate::plugin::private::normaliser::<$config>(WHAT, json),
                    || $crate::plugin::private::schema::<$config>(WHAT),
                    $crate::plugin::Factory::$kind(|json| {
                        $crate::plugin::private::guard::$guard(WHAT, $crate::plugin::private::constructor::<$config>(WHAT, json)?)
                    }),
                )
            }
        };
    };
}
