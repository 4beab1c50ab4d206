//! `circuitlab import`.

use circuitlab::formats::{ImportRequest, import};

use super::Context;
use crate::args::ImportArgs;
use crate::output::human;

pub(super) fn run(args: &ImportArgs, context: &Context) -> anyhow::Result<()> {
    let ImportArgs { from, out, format, model, hooks, dtype } = args;
    let imported = import(&ImportRequest {
        registry: &context.registry,
        from,
        out,
        format: format.0,
        model: model.as_deref(),
        hooks: hooks.map(|hooks| hooks.0),
        dtype: *dtype,
        progress: &context.bars,
    })?;
    context.print(&imported, || {
        format!(
            "{} of `{}`: {} layers, {} features each, {}{}, `{}` to `{}`; {} files, {}, are in `{}`{}",
            imported.model_kind,
            imported.format,
            imported.layers,
            imported.d_features,
            imported.activation.name,
            if imported.skip { " with a linear skip" } else { "" },
            imported.hooks[0],
            imported.hooks[1],
            imported.files,
            human::bytes(imported.bytes),
            imported.out.display(),
            imported.model.as_ref().map_or_else(String::new, |model| format!("; it is of the model `{model}`"))
        )
    })
}
