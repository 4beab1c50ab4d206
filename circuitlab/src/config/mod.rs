//! Config files: TOML, with `--set a.b=c` on top and the defaults below, read into structs that refuse unknown keys.

mod merge;
mod overrides;
mod resolve;
mod toml_text;

pub use merge::merge;
pub use overrides::overrides;
pub use resolve::resolve;
pub use toml_text::{load, to_toml};
