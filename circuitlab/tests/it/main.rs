//! Integration tests of the engine with the first-party plugins.

mod golden;
