//! The suite of this kind.
