//! Tables laid over each other.

use serde_json::{Map, Value};

/// The key that names a plugin in a table of settings.
pub(super) const TYPE: &str = "type";

/// Lays `over` over `base`: tables key by key, everything else replaces what was there.
///
/// A name and a table of settings are two forms of one thing: over `"jumprelu"`, `{ threshold = 0.1 }` becomes
/// `{ type = "jumprelu", threshold = 0.1 }`. A table whose `type` differs replaces the whole table, since the settings
/// of one plugin mean nothing to another.
pub fn merge(base: &mut Value, over: Value) {
    match over {
        Value::Object(over) => match base {
            Value::Object(old) if same_type(old, &over) => merge_tables(old, over),
            Value::String(name) if !over.contains_key(TYPE) => {
                let mut table = Map::new();
                table.insert(TYPE.to_owned(), Value::String(std::mem::take(name)));
                merge_tables(&mut table, over);
                *base = Value::Object(table);
            }
            _ => *base = Value::Object(over),
        },
        // The name of what is there already changes nothing.
        Value::String(name) if base.get(TYPE).is_some_and(|named| *named == name) => {}
        over => *base = over,
    }
}

fn merge_tables(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match base.get_mut(&key) {
            Some(old) => merge(old, value),
            None => {
                base.insert(key, value);
            }
        }
    }
}

/// Whether two tables may be settings of one plugin.
fn same_type(base: &Map<String, Value>, over: &Map<String, Value>) -> bool {
    match (base.get(TYPE), over.get(TYPE)) {
        (Some(base), Some(over)) => base == over,
        _ => true,
    }
}
