//! What the server does with a request.

use serde_json::json;

use crate::{Asked, Reply};

/// What the server does with a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Behaviour {
    /// It answers.
    Reply(Reply),
    /// It answers with a status, headers and a body, whatever they are.
    Plain {
        /// The status.
        status: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// The body.
        body: String,
    },
    /// It begins to answer, and the connection ends after so many chunks; an answer in one piece is cut in half, and after no chunk there
    /// is not even a status.
    Cut(Reply, usize),
    /// It begins to answer, and says nothing more after so many chunks, with the connection open.
    Hang(Reply, usize),
}

impl Behaviour {
    /// An answer of this text.
    pub fn reply(text: impl AsRef<str>) -> Self {
        Self::Reply(Reply::new(text))
    }

    /// A failure in OpenAI's form.
    pub fn status(status: u16, message: &str) -> Self {
        Self::failure(status, message, "server_error")
    }

    /// A failure in OpenAI's form with a code.
    pub fn failure(status: u16, message: &str, code: &str) -> Self {
        let body = json!({"error": {"message": message, "type": "error", "param": null, "code": code}}).to_string();
        Self::Plain { status, headers: vec![("content-type".to_owned(), "application/json".to_owned())], body }
    }

    /// Too many requests, with a `Retry-After` or without.
    pub fn busy(retry_after: Option<&str>) -> Self {
        let busy = Self::status(429, "Rate limit reached");
        match retry_after {
            Some(value) => busy.with("retry-after", value),
            None => busy,
        }
    }

    /// A success whose body is this, in place of an answer.
    pub fn body(content_type: &str, body: &str) -> Self {
        Self::Plain { status: 200, headers: vec![("content-type".to_owned(), content_type.to_owned())], body: body.to_owned() }
    }

    /// The same with another header, where it has headers.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        if let Self::Plain { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// A failure where the request holds any of these fields, as of a server that knows them not; nothing where it does not.
    pub fn refusing(asked: &Asked, fields: &[&str]) -> Option<Self> {
        let field = fields.iter().find(|field| asked.body.get(**field).is_some())?;
        Some(Self::failure(400, &format!("Unrecognized request argument supplied: {field}"), "unknown_parameter"))
    }

    /// A failure where the key is another; nothing where it is right. As some servers do, it repeats the key that came.
    pub fn wanting(asked: &Asked, key: &str) -> Option<Self> {
        let came = asked.key().unwrap_or_default();
        (came != key).then(|| Self::failure(401, &format!("Incorrect API key provided: {came}."), "invalid_api_key"))
    }
}
