//! `plugins show`: a plugin's settings, from the schema of its config struct.

use anyhow::bail;
use circuitlab_core::Registration;
use circuitlab_core::error::nearest;
use circuitlab_core::plugin::Origin;
use serde_json::{Map, Value};

use super::list::{facts, whence};
use crate::args::PluginsShowArgs;
use crate::commands::Context;
use crate::output::Table;

pub(super) fn run(args: &PluginsShowArgs, context: &Context) -> anyhow::Result<()> {
    let found = find(&args.name, context)?;
    let pages = found.iter().map(|(plugin, origin)| Page::of(plugin, origin)).collect::<anyhow::Result<Vec<_>>>()?;
    let all: Vec<&Value> = pages.iter().map(|page| &page.facts).collect();
    context.print(&all, || pages.iter().map(|page| page.text.as_str()).collect::<Vec<_>>().join("\n\n"))
}

/// The plugins of that name; several where kinds share it.
fn find<'a>(name: &str, context: &'a Context) -> anyhow::Result<Vec<(&'a Registration, &'a Origin)>> {
    let full = |plugin: &Registration| format!("{}/{}", plugin.kind(), plugin.name());
    let found: Vec<_> = context.registry.origins().filter(|(plugin, _)| plugin.name() == name || full(plugin) == name).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let known: Vec<String> = context.registry.list().map(full).collect();
    let names = known.iter().flat_map(|full| [full.as_str(), full.split_once('/').map_or("", |(_, name)| name)]);
    let hint = nearest(name, names).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
    bail!("unknown plugin `{name}`{hint}; known: {}", known.join(", "))
}

struct Page {
    facts: Value,
    text: String,
}

impl Page {
    fn of(plugin: &Registration, origin: &Origin) -> anyhow::Result<Self> {
        let schema = plugin.schema()?;
        // A plugin that cannot do without a setting has no whole default.
        let defaults = plugin.defaults().unwrap_or_default();
        let mut all = facts(plugin, origin);
        all["settings"] = schema.clone();
        all["defaults"] = defaults.clone().into();
        let head = format!("{} `{}`: {}\nfrom {}", plugin.kind(), plugin.name(), plugin.summary(), whence(plugin, origin));
        Ok(Self { facts: all, text: format!("{head}\n\n{}", settings(&schema, &defaults)) })
    }
}

/// The settings as a table.
fn settings(schema: &Value, defaults: &Map<String, Value>) -> String {
    let fields = schema.get("properties").and_then(Value::as_object);
    let Some(fields) = fields.filter(|fields| !fields.is_empty()) else { return "it has no settings".to_owned() };
    let required: Vec<&str> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut table = Table::new(["setting", "type", "default", "what it is"]);
    for (name, field) in fields {
        let default = match defaults.get(name).or_else(|| field.get("default")) {
            Some(Value::Null) => "not set".to_owned(),
            Some(value) => value.to_string(),
            None if required.contains(&name.as_str()) => "required".to_owned(),
            None => "not set".to_owned(),
        };
        let doc = field.get("description").and_then(Value::as_str).unwrap_or_default();
        table.row([name.clone(), kind(field, schema), default, doc.split_whitespace().collect::<Vec<_>>().join(" ")]);
    }
    table.to_string()
}

/// A field's type in words.
fn kind(field: &Value, schema: &Value) -> String {
    if let Some(at) = field.get("$ref").and_then(Value::as_str).and_then(|at| at.strip_prefix('#')) {
        return schema.pointer(at).map_or_else(String::new, |target| kind(target, schema));
    }
    if let Some(value) = field.get("const") {
        return value.to_string();
    }
    for key in ["enum", "oneOf", "anyOf", "allOf"] {
        if let Some(choices) = field.get(key).and_then(Value::as_array) {
            let word = |choice: &Value| if key == "enum" { choice.to_string() } else { kind(choice, schema) };
            let words: Vec<String> = choices.iter().map(word).filter(|word| word != "nothing").collect();
            return words.join(" or ");
        }
    }
    match field.get("type") {
        Some(Value::String(one)) => word(one, field, schema),
        Some(Value::Array(several)) => {
            let words = several.iter().filter_map(Value::as_str).map(|one| word(one, field, schema)).filter(|word| word != "nothing");
            words.collect::<Vec<_>>().join(" or ")
        }
        _ => "anything".to_owned(),
    }
}

fn word(kind_name: &str, field: &Value, schema: &Value) -> String {
    match kind_name {
        "integer" => "whole number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "string" => "text".to_owned(),
        "null" => "nothing".to_owned(),
        "array" => format!("list of {}", field.get("items").map_or_else(|| "anything".to_owned(), |items| kind(items, schema))),
        "object" => "table".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_are_told_in_words() {
        let schema = json!({"$defs": {"Way": {"oneOf": [{"const": "log"}, {"const": "direct"}]}}, "properties": {
            "a": {"type": "integer", "description": "How\n many."}, "b": {"type": ["string", "null"]}, "c": {"$ref": "#/$defs/Way"},
            "d": {"type": "array", "items": {"type": "number"}}, "e": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        }, "required": ["a"]});
        let Value::Object(defaults) = json!({"b": null, "c": "log", "d": [1.5]}) else { panic!("a table") };
        let lines: Vec<String> = settings(&schema, &defaults).lines().map(str::to_owned).collect();
        assert_eq!(
            lines[1].split("  ").filter(|cell| !cell.is_empty()).map(str::trim).collect::<Vec<_>>(),
            ["a", "whole number", "required", "How many."]
        );
        assert!(lines[2].contains("text") && lines[2].contains("not set"), "{}", lines[2]);
        assert!(lines[3].contains(r#""log" or "direct""#), "{}", lines[3]);
        assert!(lines[4].contains("list of number") && lines[4].contains("[1.5]"), "{}", lines[4]);
        assert!(lines[5].contains("true or false"), "{}", lines[5]);
        assert_eq!(settings(&json!({}), &Map::new()), "it has no settings");
    }
}
