//! Guarded explainers, and the chats behind them.

use std::fmt;
use std::sync::Arc;

use super::guarded::Guarded;
use crate::explainer::{ChatAnswer, ChatIdentity, ChatRequest, Price};
use crate::{Chat, Error, Evidence, Explainer, Result};

/// Guards an explainer.
///
/// # Errors
/// A panic while its chat says what it is.
pub fn explainer<T: Explainer + 'static>(what: &'static str, made: T) -> Result<Box<dyn Explainer>> {
    let guarded = Arc::new(Guarded::new(what, made));
    let facts = |chat: &dyn Chat| (chat.identity(), chat.concurrency(), chat.price());
    let chat = guarded.call(|explainer| Ok(explainer.chat().map(facts)))?;
    let chat = chat.map(|(identity, concurrency, price)| GuardedChat { explainer: Arc::clone(&guarded), identity, concurrency, price });
    Ok(Box::new(GuardedExplainer { explainer: guarded, chat }))
}

struct GuardedExplainer<T> {
    explainer: Arc<Guarded<T, ()>>,
    chat: Option<GuardedChat<T>>,
}

/// The chat of an explainer, and what it said of itself, once.
struct GuardedChat<T> {
    explainer: Arc<Guarded<T, ()>>,
    identity: ChatIdentity,
    concurrency: usize,
    price: Option<Price>,
}

impl<T: Explainer> Explainer for GuardedExplainer<T> {
    fn chat(&self) -> Option<&dyn Chat> {
        self.chat.as_ref().map(|chat| chat as &dyn Chat)
    }

    fn label(&self, evidence: &Evidence) -> Result<String> {
        self.explainer.call(|explainer| explainer.label(evidence))
    }
}

impl<T: Explainer> Chat for GuardedChat<T> {
    fn identity(&self) -> ChatIdentity {
        self.identity.clone()
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn price(&self) -> Option<Price> {
        self.price
    }

    fn complete(&self, request: &ChatRequest) -> Result<ChatAnswer> {
        let gone = || Error::Invalid(format!("{} had a chat when it was made, and has none any more", self.explainer.what()));
        self.explainer.call(|explainer| explainer.chat().ok_or_else(gone)?.complete(request))
    }
}

/// As every guarded component: a `Debug` of the plugin's own might panic.
impl<T> fmt::Debug for GuardedExplainer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explainer.fmt(f)
    }
}

impl<T> fmt::Debug for GuardedChat<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.explainer.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Rude {
        speaks: bool,
    }

    impl Explainer for Rude {
        fn chat(&self) -> Option<&dyn Chat> {
            self.speaks.then_some(self)
        }

        fn label(&self, _: &Evidence) -> Result<String> {
            panic!("no label")
        }
    }

    impl Chat for Rude {
        fn identity(&self) -> ChatIdentity {
            ChatIdentity { endpoint: "here".into(), model: "rude".into() }
        }

        fn concurrency(&self) -> usize {
            3
        }

        fn price(&self) -> Option<Price> {
            None
        }

        fn complete(&self, _: &ChatRequest) -> Result<ChatAnswer> {
            panic!("no answer\nof two lines")
        }
    }

    impl Drop for Rude {
        fn drop(&mut self) {
            panic!("not even when it goes")
        }
    }

    fn evidence() -> Evidence {
        let (examples, top_logits, bottom_logits) = (Vec::new(), Vec::new(), Vec::new());
        Evidence { layer: 0, feature: 0, frequency: 0.0, max_activation: 0.0, examples, top_logits, bottom_logits }
    }

    #[test]
    fn panics_of_an_explainer_and_of_its_chat_are_errors() {
        let request = ChatRequest { messages: Vec::new(), max_tokens: 1, temperature: 0.0, seed: None, top_logprobs: None };
        for speaks in [false, true] {
            let guarded = explainer("explainer `rude`", Rude { speaks }).expect("is made");
            assert_eq!(guarded.label(&evidence()).expect_err("panicked").to_string(), "explainer `rude` panicked: no label");
            let Some(chat) = guarded.chat() else {
                assert!(!speaks);
                continue;
            };
            assert_eq!((chat.identity().model.as_str(), chat.concurrency(), chat.price()), ("rude", 3, None));
            assert_eq!(chat.complete(&request).expect_err("panicked").to_string(), "explainer `rude` panicked: no answer");
            assert_eq!(format!("{chat:?}"), "explainer `rude`");
        }
    }
}
