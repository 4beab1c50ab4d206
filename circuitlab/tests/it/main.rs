//! The engine as a program meets it, over small models and texts made here and over recordings.

mod attribution;
mod cache;
mod choices;
mod exact;
mod fake;
mod formats;
mod golden;
mod interventions;
mod loader;
mod shakespeare;
mod text;
mod training;
