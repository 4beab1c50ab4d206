//! Loops over rows of numbers on CPUs: what training is fast by, without knowing what is trained.
//!
//! - [`adam`]: the optimiser in one pass over its state, and sums of squares.
//! - [`slices`]: the numbers of a tensor, without a copy.
//! - [`threads`]: as many threads as libtorch has, for loops of our own and for products in blocks.
//!
//! Every result is the same for any number of threads: a thread owns what it writes, and sums run in a fixed order.

#![allow(clippy::inline_always, reason = "what is not inlined is not compiled for its caller's vector unit")]

pub mod adam;
pub mod real;
pub mod rows;
pub mod slices;
pub mod threads;
