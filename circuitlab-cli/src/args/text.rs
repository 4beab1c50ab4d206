//! Which text.

use std::path::PathBuf;

use clap::Args;

/// Text files and the part of them that is read.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// Text files, or folders of them.
    #[arg(long = "text", required = true, num_args = 1.., value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The part of each file that is read, as shares of its bytes, such as `0..0.95`.
    #[arg(long, value_name = "FROM..TO")]
    pub range: Option<String>,
}
