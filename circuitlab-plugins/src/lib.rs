//! First-party plugins: what `circuitlab` can do without any other crate.
//!
//! A program that uses them calls [`link`] once, so that the linker keeps this crate and its registrations.
//!
//! Without the feature `register`, which is on by default, the crate is a library of its parts and registers nothing. So a
//! model family in a crate of its own can be a page over [`models::transformer`] and bring no other names along;
//! `templates/model` is one.

/// Registers a plugin where the crate's feature `register` is on.
macro_rules! register {
    ($($plugin:tt)*) => {
        #[cfg(feature = "register")]
        circuitlab_core::register!($($plugin)*);
    };
}

pub mod codecs;
pub mod models;
pub mod parallel;
pub mod sinks;
pub mod sparsity;
pub mod text;
pub mod transcoders;

/// Does nothing; naming it links this crate, and with it every plugin that the crate registers.
pub fn link() {}
