//! `circuitlab demo`.

use std::path::PathBuf;

use clap::Args;

/// Runs the whole pipeline on the bundled model and text.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder for everything that the demo makes; an interrupted demo goes on there.
    #[arg(long, default_value = "circuitlab-demo", value_name = "DIR")]
    pub out: PathBuf,
}
