//! The one line that makes a type a plugin.

/// Registers a config struct under a name.
///
/// ```
/// use circuitlab_core::{Construct, Documents, Result, TextSource, register};
/// use std::path::Path;
///
/// #[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
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
    (model $($rest:tt)*) => { $crate::register!(@ Model "model" $($rest)*); };
    (codec $($rest:tt)*) => { $crate::register!(@ Codec "codec" $($rest)*); };
    (activation $($rest:tt)*) => { $crate::register!(@ Activation "activation" $($rest)*); };
    (transcoder $($rest:tt)*) => { $crate::register!(@ Transcoder "transcoder" $($rest)*); };
    (strategy $($rest:tt)*) => { $crate::register!(@ Strategy "strategy" $($rest)*); };
    (text_source $($rest:tt)*) => { $crate::register!(@ TextSource "text-source" $($rest)*); };
    (@ $kind:ident $word:literal $name:literal => $config:ty, $summary:literal) => {
        const _: () = {
            const WHAT: &str = concat!($word, " `", $name, "`");
            $crate::plugin::private::inventory::submit! {
                $crate::plugin::private::submit(
                    $name,
                    $summary,
                    env!("CARGO_PKG_NAME"),
                    env!("CARGO_PKG_VERSION"),
                    |json| $crate::plugin::private::normaliser::<$config>(WHAT, json),
                    $crate::plugin::Factory::$kind(|json| Ok(Box::new($crate::plugin::private::constructor::<$config>(WHAT, json)?))),
                )
            }
        };
    };
}
