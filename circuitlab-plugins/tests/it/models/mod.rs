//! Model families: against recorded values, against a second implementation, and on bad input.

mod bad_input;
mod folder;
mod parity;
mod random;
mod reference;
