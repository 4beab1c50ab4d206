//! The one line that makes a type a plugin.

/// Registers a config struct under a name.
///
/// ```
/// use circuitlab_core::{Construct, Documents, Result, TextInput, TextSource, register};
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
///     fn documents(&self, _: TextInput) -> Result<Documents> {
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
    (explainer $($rest:tt)*) => { $crate::register!(@ Explainer "explainer" explainer $($rest)*); };
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

/// Makes the crate loadable at run time, once in a crate. Without the crate's own feature `dynamic`, which must switch that of this crate
/// on, it expands to nothing:
///
/// ```toml
/// [features]
/// dynamic = ["circuitlab-core/dynamic"]
/// ```
/// ```
/// circuitlab_core::export_plugin!();
/// # fn main() {}
/// ```
///
/// Built with `cargo rustc --release --lib --crate-type cdylib --features dynamic`, the library exports two symbols: what it was built
/// with, and a function that hands its registrations over; they are all that the loader looks for. `export_plugin!(init)` runs `fn init() -> circuitlab_core::Result<()>` first.
#[cfg(feature = "dynamic")]
#[macro_export]
macro_rules! export_plugin {
    () => {
        $crate::export_plugin!(|| Ok(()));
    };
    ($init:expr) => {
        #[cfg(feature = "dynamic")]
        const _: () = {
            #[unsafe(no_mangle)]
            static CIRCUITLAB_PLUGIN_ABI: $crate::plugin::AbiHeader =
                $crate::plugin::AbiHeader::current(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));

            #[unsafe(no_mangle)]
            unsafe extern "C" fn circuitlab_plugin_entry(
                services: *const $crate::plugin::HostServices,
                collector: *mut ::core::ffi::c_void,
            ) -> i64 {
                // SAFETY: the loader, which alone calls this, keeps the contract of `enter`.
                unsafe { $crate::plugin::private::enter(services, collector, $init) }
            }
        };
    };
}

/// Makes the crate loadable at run time, where its feature `dynamic` switches that of this crate on.
#[cfg(not(feature = "dynamic"))]
#[macro_export]
macro_rules! export_plugin {
    ($($init:expr)?) => {
        #[cfg(feature = "dynamic")]
        compile_error!(
            "the feature `dynamic` must switch on that of circuitlab-core: dynamic = [\"circuitlab-core/dynamic\"] under [features]"
        );
    };
}
