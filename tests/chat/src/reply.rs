//! What a model answers.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Asked;

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// The logarithm of its probability.
    pub logprob: f64,
    /// Candidates for its place, with theirs, in the order in which they are sent.
    pub top: Vec<(String, f64)>,
}

/// An answer. Whether it is streamed, and whether probabilities and usage are in it, is as the request wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// Its tokens, which are its text when they are put together. Streamed, each is a chunk.
    pub tokens: Vec<Token>,
    /// Why it ends: `stop`, `length`, `content_filter`.
    pub finish_reason: String,
    /// Tokens of the prompt and of the answer; none where the server does not count.
    pub usage: Option<(u64, u64)>,
    /// How long it thinks before each chunk.
    pub pause: Duration,
    /// Whether the server tells probabilities at all.
    pub has_logprobs: bool,
}

impl Reply {
    /// A text, cut into tokens before its spaces, each of the probability 1.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let mut cuts: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).filter(|at| *at > 0).collect();
        cuts.push(text.len());
        let mut begin = 0;
        let mut tokens = Vec::new();
        for end in cuts {
            let piece = &text[begin..end];
            if !piece.is_empty() {
                tokens.push(Token { text: piece.to_owned(), logprob: 0.0, top: vec![(piece.to_owned(), 0.0)] });
            }
            begin = end;
        }
        let usage = Some((7, tokens.len() as u64));
        Self { tokens, finish_reason: "stop".to_owned(), usage, pause: Duration::ZERO, has_logprobs: true }
    }

    /// One token with candidates and their probabilities, of which the first is what is said.
    pub fn choice(candidates: &[(&str, f64)]) -> Self {
        let top: Vec<(String, f64)> = candidates.iter().map(|(text, probability)| ((*text).to_owned(), probability.ln())).collect();
        let said = top.first().cloned().unwrap_or_default();
        Self { tokens: vec![Token { text: said.0, logprob: said.1, top }], ..Self::new("") }
    }

    /// The same, with a pause before each chunk.
    #[must_use]
    pub fn slowly(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// The same from a server that knows no probabilities.
    #[must_use]
    pub fn without_logprobs(self) -> Self {
        Self { has_logprobs: false, ..self }
    }

    /// The same, ended for another reason.
    #[must_use]
    pub fn ended_by(self, finish_reason: &str) -> Self {
        Self { finish_reason: finish_reason.to_owned(), ..self }
    }

    /// Its text.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    fn logprobs(&self, asked: &Asked, tokens: &[Token]) -> Value {
        if asked.body["logprobs"] != true || !self.has_logprobs {
            return Value::Null;
        }
        let most = asked.body["top_logprobs"].as_u64().unwrap_or(0) as usize;
        let one = |text: &str, logprob: f64| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
        let token = |token: &Token| {
            let mut entry = one(&token.text, token.logprob);
            entry["top_logprobs"] = token.top.iter().take(most).map(|(text, logprob)| one(text, *logprob)).collect();
            entry
        };
        json!({"content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null})
    }

    fn counted(&self) -> Value {
        self.usage.map_or(
            Value::Null,
            |(prompt, completion)| json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}),
        )
    }

    /// The answer in one piece.
    pub(crate) fn whole(&self, asked: &Asked) -> String {
        json!({
            "id": format!("chatcmpl-{}", asked.turn), "object": "chat.completion", "created": 1_700_000_000, "model": asked.body["model"],
            "choices": [{
                "index": 0, "message": {"role": "assistant", "content": self.text()},
                "logprobs": self.logprobs(asked, &self.tokens), "finish_reason": self.finish_reason,
            }],
            "usage": self.counted(),
        })
        .to_string()
    }

    /// The answer as events: who speaks, each token, why it ends, what it cost where that is wanted, and the end.
    pub(crate) fn events(&self, asked: &Asked) -> Vec<String> {
        let chunk = |choices: Value, usage: Value| {
            let mut chunk = json!({
                "id": format!("chatcmpl-{}", asked.turn), "object": "chat.completion.chunk", "created": 1_700_000_000,
                "model": asked.body["model"], "choices": choices,
            });
            if !usage.is_null() {
                chunk["usage"] = usage;
            }
            format!("data: {chunk}\n\n")
        };
        let choice = |delta: Value, logprobs: Value, finish_reason: Value| {
            let choice = json!([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]);
            chunk(choice, Value::Null)
        };
        let mut events = vec![choice(json!({"role": "assistant", "content": ""}), Value::Null, Value::Null)];
        events.extend(
            self.tokens
                .iter()
                .map(|token| choice(json!({"content": token.text}), self.logprobs(asked, std::slice::from_ref(token)), Value::Null)),
        );
        events.push(choice(json!({}), Value::Null, self.finish_reason.as_str().into()));
        if asked.body["stream_options"]["include_usage"] == true && self.usage.is_some() {
            events.push(chunk(json!([]), self.counted()));
        }
        events.push("data: [DONE]\n\n".to_owned());
        events
    }
}
