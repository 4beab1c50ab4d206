//! Which text.

use std::path::PathBuf;

use clap::Args;

/// Text files and the part of them that is read.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// Text files, folders of them, patterns such as `'data/**/*.jsonl.gz'`, or data sets of the Hugging Face hub:
    /// `hf:ORG/NAME[@REVISION][/PATTERN]`. Text may be packed as `.gz` or `.zst`.
    #[arg(long = "text", required = true, num_args = 1.., value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The field or column that holds the text, or the ids of documents that are tokens already. Default: `text`.
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Leave out lines that cannot be read, and count them.
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// The part of each file that is read, as shares of its bytes, such as `0..0.95`.
    #[arg(long, value_name = "FROM..TO")]
    pub range: Option<String>,
}
