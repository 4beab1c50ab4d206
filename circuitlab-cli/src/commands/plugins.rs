//! `circuitlab plugins`.

use circuitlab_core::Registration;
use serde_json::json;

use super::Context;
use crate::args::PluginsCommand;
use crate::output::Table;

pub(super) fn run(command: &PluginsCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        PluginsCommand::List => list(context),
    }
}

fn list(context: &Context) -> anyhow::Result<()> {
    let origin = |plugin: &Registration| format!("{} {}", plugin.package(), plugin.version());
    let rows: Vec<_> = context
        .registry
        .list()
        .map(|plugin| {
            json!({
                "kind": plugin.kind().name(), "name": plugin.name(), "package": plugin.package(), "version": plugin.version(),
                "summary": plugin.summary(),
            })
        })
        .collect();
    context.print(&rows, || {
        let mut table = Table::new(["kind", "name", "what it is", "from"]);
        for plugin in context.registry.list() {
            table.row([plugin.kind().name(), plugin.name(), plugin.summary(), &origin(plugin)]);
        }
        table.to_string()
    })
}
