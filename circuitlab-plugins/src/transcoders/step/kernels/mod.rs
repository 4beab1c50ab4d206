//! The step for activations that are a threshold, on CPUs: dense work where nothing is known to be zero, which is the encoder's
//! product, and work in proportion to the active entries everywhere else. Exact: what is left out is zero.
//!
//! | stage     | over                                | what                                                                   |
//! |-----------|-------------------------------------|------------------------------------------------------------------------|
//! | encode    | blocks of features of a layer       | a block's pre-activations by libtorch, into a core's own cache          |
//! | select    | the same, at once                   | active entries feature by feature, silent rows near the threshold, sums |
//! | decode    | tiles of the reconstruction         | active entries of all sources, and no decoder without any               |
//! | residual  | the same                            | squared error and its gradient `E`                                      |
//! | decoder   | for each source and tile, blocks    | `dW_dec`, gradient to active entries, sums of `E` near the threshold     |
//! | encoder   | for each source, blocks             | `dW_enc`, `db_enc`, gradient to thresholds                              |
//!
//! Two sums over all rows spare a pass over the silent entries. The pre-activation term gives each entry below the threshold the
//! same gradient: the total over rows less the others. And the gradient of a threshold needs `sum <W_dec, E>` over the rows within the
//! window: one product with the sum of these rows of `E` or, where the rows outside are fewer, with the total less these.

#![allow(clippy::inline_always, reason = "a loop is compiled for a vector unit only where it is compiled into what asks for that unit")]

mod backward;
mod block;
mod clock;
mod decode;
mod forward;
mod select;
mod spread;
mod stages;
#[cfg(test)]
mod tests;
mod tiles;
mod workspace;

pub(super) use stages::step;
pub(super) use workspace::Workspace;
