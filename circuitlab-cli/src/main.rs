//! The `circuitlab` program. One with more plugins linked in is as short: name their crates, and call the same `main`.

use std::process::ExitCode;

fn main() -> ExitCode {
    circuitlab_cli::main()
}
