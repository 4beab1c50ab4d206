//! `circuitlab export`.

use circuitlab::export::{ExportRequest, export};

use super::Context;
use crate::args::ExportArgs;
use crate::output::human;

pub(super) fn run(args: &ExportArgs, context: &Context) -> anyhow::Result<()> {
    let ExportArgs { from, out, dtype, format } = args;
    let exported = export(&ExportRequest { from, out, dtype: *dtype, format: format.0, progress: &context.bars })?;
    context.print(&exported, || {
        format!(
            "{} files, {}, of `{}` are in `{}`{}",
            exported.files,
            human::bytes(exported.bytes),
            exported.from.display(),
            exported.out.display(),
            if exported.checked { "; all are as they were written" } else { "" }
        )
    })
}
