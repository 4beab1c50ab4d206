//! What a feature means: labels from evidence, and language models that are asked over a network.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Finds words for features.
///
/// Either there is a language model behind it, which reads prompts ([`Explainer::chat`]): whoever asks writes them from templates, and may
/// have scores judged by it too. Or it makes a label from the evidence by itself ([`Explainer::label`]).
///
/// Conformance is checked by [`testing::explainer`](crate::testing::explainer).
pub trait Explainer: Debug + Send + Sync {
    /// The language model behind it, where there is one that reads prompts: what writes labels from a template, and judges scores.
    fn chat(&self) -> Option<&dyn Chat> {
        None
    }

    /// A label from evidence alone: one line for people to read, not empty, and the same for the same evidence. Asked only where there is
    /// no [`chat`](Explainer::chat).
    ///
    /// # Errors
    /// Evidence that nothing can be said about, such as no example at all, and evidence that contradicts itself. The default is an error.
    fn label(&self, evidence: &Evidence) -> Result<String> {
        let Evidence { layer, feature, .. } = evidence;
        Err(Error::Invalid(format!("feature {layer}/{feature}: this explainer makes no labels from evidence alone")))
    }
}

/// A language model that answers messages. What it holds of secrets, such as a key, is in none of its answers, errors or `Debug`.
pub trait Chat: Debug + Send + Sync {
    /// Which model answers, and where: for records and for keys of caches. It never changes, and is asked for once.
    fn identity(&self) -> ChatIdentity;

    /// How many calls of [`complete`](Chat::complete) may run at once; at least 1. Asked for once.
    fn concurrency(&self) -> usize;

    /// What a million tokens cost, where the user has said so. Asked for once.
    fn price(&self) -> Option<Price>;

    /// Asks, and waits for the answer, with whatever is tried again on the way.
    ///
    /// # Errors
    /// When nothing can be asked, this request or another: a wrong key, a model that is not there, an endpoint that is down. What fails
    /// with this request alone is [`ChatAnswer::Refused`].
    fn complete(&self, request: &ChatRequest) -> Result<ChatAnswer>;
}

/// Which language model answers. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatIdentity {
    /// Where it is asked, such as `http://localhost:8000/v1`.
    pub endpoint: String,
    /// Its name there.
    pub model: String,
}

/// What a million tokens cost, in the currency that the user thinks of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A million tokens of the prompt.
    pub prompt: f64,
    /// A million tokens of the answer.
    pub completion: f64,
}

/// What is asked of a language model. Its JSON is what keys of caches are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// The conversation so far, oldest first.
    pub messages: Vec<ChatMessage>,
    /// Tokens that the answer may have.
    pub max_tokens: u32,
    /// How freely it chooses; 0 takes the likeliest token each time.
    pub temperature: f32,
    /// Makes it choose the same way each time, where the model can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Asks for the logarithms of the probabilities: of the answer's tokens, and of so many other candidates for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u8>,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Who says it.
    pub role: Role,
    /// The text.
    pub content: String,
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever set the conversation up.
    System,
    /// Whoever asks.
    User,
    /// The language model.
    Assistant,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum ChatAnswer {
    /// The answer.
    Reply(ChatReply),
    /// Nothing, for a reason of one line that lies in this request alone, and which asking again did not help: the next may well be answered.
    Refused(String),
}

/// What a language model answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatReply {
    /// The text.
    pub text: String,
    /// Its tokens with their probabilities, where they were asked for and the model tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<ReplyToken>>,
    /// What it was charged for, where the model tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A token of an answer. Logarithms are natural and finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyToken {
    /// Its text.
    pub token: String,
    /// The logarithm of its probability.
    pub logprob: f32,
    /// The likeliest candidates for its place, likeliest first, with theirs.
    pub top: Vec<(String, f32)>,
}

/// Tokens that were read and written for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
}

/// What is known of a feature when it is to be labelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Its layer.
    pub layer: usize,
    /// Its index within the layer.
    pub feature: usize,
    /// The share of tokens on which it fires, 0 to 1.
    pub frequency: f64,
    /// Its largest activation.
    pub max_activation: f32,
    /// Contexts in which it fires.
    pub examples: Vec<EvidenceExample>,
    /// The tokens that it promotes most, with what it adds to their logits, most first.
    pub top_logits: Vec<(String, f32)>,
    /// The tokens that it suppresses most, with what it adds to their logits, lowest first.
    pub bottom_logits: Vec<(String, f32)>,
}

/// A context in which a feature fires: as many activations as tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceExample {
    /// Texts of the tokens, in order.
    pub tokens: Vec<String>,
    /// The feature's activation at each; 0 where it does not fire.
    pub activations: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Mute;

    impl Explainer for Mute {}

    #[test]
    fn an_explainer_without_either_says_which_feature_it_has_no_label_for() {
        let evidence = Evidence {
            layer: 3,
            feature: 17,
            frequency: 0.0,
            max_activation: 0.0,
            examples: Vec::new(),
            top_logits: Vec::new(),
            bottom_logits: Vec::new(),
        };
        assert!(Mute.chat().is_none());
        let error = Mute.label(&evidence).expect_err("no label").to_string();
        assert_eq!(error, "feature 3/17: this explainer makes no labels from evidence alone");
    }

    #[test]
    fn requests_and_replies_have_one_form_in_json() {
        let message = ChatMessage { role: Role::User, content: "Hi".into() };
        let mut request = ChatRequest { messages: vec![message], max_tokens: 9, temperature: 0.0, seed: None, top_logprobs: None };
        let text = serde_json::to_string(&request).expect("JSON");
        assert_eq!(text, r#"{"messages":[{"role":"user","content":"Hi"}],"max_tokens":9,"temperature":0.0}"#);
        (request.seed, request.top_logprobs) = (Some(u64::MAX), Some(5));
        let text = serde_json::to_string(&request).expect("JSON");
        assert_eq!(serde_json::from_str::<ChatRequest>(&text).expect("its own"), request);
        let reply = ChatReply {
            text: "no".into(),
            tokens: Some(vec![ReplyToken { token: "no".into(), logprob: -0.25, top: vec![("yes".into(), -1.5)] }]),
            usage: Some(Usage { prompt_tokens: 10, completion_tokens: 1 }),
        };
        let text = serde_json::to_string(&reply).expect("JSON");
        assert_eq!(serde_json::from_str::<ChatReply>(&text).expect("its own"), reply);
    }
}
