//! Text sources: `txt`.

mod txt;

pub use txt::{Txt, TxtConfig};
