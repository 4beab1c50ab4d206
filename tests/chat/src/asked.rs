//! What was asked.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// How many requests came before it.
    pub turn: usize,
    /// Such as `POST`.
    pub method: String,
    /// With its slash, and its query where there is one.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// The body; `null` where it is not JSON.
    pub body: Value,
    /// When it came.
    pub at: Instant,
}

impl Asked {
    /// The text of the last message.
    pub fn prompt(&self) -> &str {
        self.messages().last().and_then(|message| message["content"].as_str()).unwrap_or_default()
    }

    /// All messages.
    pub fn messages(&self) -> &[Value] {
        self.body["messages"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The texts of all messages, a line between them.
    pub fn conversation(&self) -> String {
        self.messages().iter().filter_map(|message| message["content"].as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Whether the answer is wanted in pieces.
    pub fn streams(&self) -> bool {
        self.body["stream"] == true
    }

    /// The key that came along.
    pub fn key(&self) -> Option<&str> {
        self.headers.get("authorization")?.strip_prefix("Bearer ")
    }
}
