//! The engine as a program meets it, over small models and texts made here.

mod cache;
mod fake;
mod loader;
mod shakespeare;
mod text;
