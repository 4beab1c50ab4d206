//! Integration tests of the first-party plugins, in one program.

mod models;
