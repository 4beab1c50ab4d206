//! Registration and look-up by name.
//!
//! Plugins submit a [`Registration`] at link time with [`register!`](crate::register); [`Registry::linked`] gathers them.
//! Config crosses as JSON text, so that a plugin's types stay its own.

mod abi;
#[cfg(feature = "dynamic")]
mod entry;
mod guard;
mod layout;
#[cfg(feature = "loader")]
pub mod loader;
mod macros;
mod provider;
mod registration;
mod registry;
mod services;

pub use abi::{AbiHeader, Difference};
pub use provider::Provider;
pub use registration::{Construct, Factory, Kind, Make, Registered, Registration, Slot};
pub use registry::{Origin, Registry};
pub use services::{Entry, HostServices};

/// What the [`register!`](crate::register) macro expands to; not for use by hand.
#[doc(hidden)]
pub mod private {
    #[cfg(feature = "dynamic")]
    pub use super::entry::enter;
    pub mod guard {
        pub use super::super::guard::{activation, codec, explainer, metric_sink, model, strategy, text_source, transcoder};
    }
    pub use super::registration::{constructor, normaliser, schema, submit};
    pub use inventory;
}
