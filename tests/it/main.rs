//! The built program, from the outside.

mod bad_input;
mod export;
mod kill;
mod model;
mod pipeline;
mod topk;
