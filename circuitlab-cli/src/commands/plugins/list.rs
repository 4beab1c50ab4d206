//! `plugins list`.

use circuitlab_core::Registration;
use circuitlab_core::plugin::Origin;
use serde_json::{Value, json};

use crate::commands::Context;
use crate::output::Table;

pub(super) fn run(context: &Context) -> anyhow::Result<()> {
    let rows: Vec<Value> = context.registry.origins().map(|(plugin, origin)| facts(plugin, origin)).collect();
    context.print(&rows, || {
        let mut table = Table::new(["kind", "name", "what it is", "from"]);
        for (plugin, origin) in context.registry.origins() {
            table.row([plugin.kind().name(), plugin.name(), plugin.summary(), &whence(plugin, origin)]);
        }
        table.to_string()
    })
}

/// What is known of a plugin without making it.
pub(super) fn facts(plugin: &Registration, origin: &Origin) -> Value {
    let file = match origin {
        Origin::Linked => Value::Null,
        Origin::Loaded(file) => file.display().to_string().into(),
    };
    json!({
        "kind": plugin.kind().name(), "name": plugin.name(), "summary": plugin.summary(), "package": plugin.package(),
        "version": plugin.version(), "origin": if file.is_null() { "linked" } else { "loaded" }, "file": file,
    })
}

/// The package, and the library's file where there is one.
pub(super) fn whence(plugin: &Registration, origin: &Origin) -> String {
    let package = format!("{} {}", plugin.package(), plugin.version());
    match origin {
        Origin::Linked => package,
        Origin::Loaded(file) => format!("{package}, {}", file.display()),
    }
}
