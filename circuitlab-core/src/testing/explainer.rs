//! The suite of explainers.
//!
//! ```no_run
//! use circuitlab_core::{Explainer, Registry, Spec, testing};
//! let registry = Registry::linked().expect("no name twice");
//! let explainer = registry.build::<dyn Explainer>(&Spec::named("my-explainer")).expect("known");
//! testing::explainer::conforms(explainer.as_ref());
//! testing::explainer::hides(explainer.as_ref(), "the key that its environment holds");
//! ```

use std::thread;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::explainer::{ChatAnswer, ChatMessage, ChatRequest, EvidenceExample, ReplyToken, Role};
use crate::{Chat, Error, Evidence, Explainer, Result};

/// Checks all that [`Explainer`] promises and, where it has a [`Chat`], what that does. A chat's endpoint must be one that answers while
/// the suite runs: a test's own server.
///
/// # Panics
/// With the promise that is broken.
pub fn conforms(explainer: &dyn Explainer) {
    match explainer.chat() {
        Some(chat) => {
            tells_what_it_is(chat);
            answers(chat);
            takes_odd_requests(chat);
        }
        None => labels_what_is_plain(explainer),
    }
    takes_odd_evidence(explainer);
}

/// Checks that a secret which the explainer was given is in nothing that it tells.
///
/// # Panics
/// Where it is.
pub fn hides(explainer: &dyn Explainer, secret: &str) {
    assert!(!secret.is_empty(), "a secret that can be found");
    let mut told = vec![format!("{explainer:?}"), format!("{:?}", explainer.label(&firing_on(" king")))];
    if let Some(chat) = explainer.chat() {
        told.extend([format!("{chat:?}"), format!("{:?}", chat.identity()), format!("{:?}", chat.complete(&request("Say yes")))]);
    }
    for text in told {
        assert!(!text.contains(secret), "it tells a secret: {}", text.replace(secret, "[the secret]"));
    }
}

/// The evidence of a feature that fires on one token alone, in eight contexts.
pub fn firing_on(token: &str) -> Evidence {
    let example = |turn: usize| {
        let before = [" the", " a", " my", " that"][turn % 4];
        let tokens = ["Then", " came", before, token, " and", " spoke"].map(str::to_owned).to_vec();
        let activations = tokens.iter().map(|found| if found == token { 4.0 - turn as f32 / 4.0 } else { 0.0 }).collect();
        EvidenceExample { tokens, activations }
    };
    Evidence {
        layer: 1,
        feature: 23,
        frequency: 0.002,
        max_activation: 4.0,
        examples: (0..8).map(example).collect(),
        top_logits: vec![(" of".into(), 1.5), ("'s".into(), 1.25)],
        bottom_logits: vec![(" the".into(), -0.5)],
    }
}

/// Evidence of any kind: without examples, with texts of any characters, with numbers of any bits, with lengths that do not agree.
pub fn any_evidence() -> impl Strategy<Value = Evidence> {
    let token = prop_oneof![4 => "[ \\n]?[a-zA-Z0-9.,']{0,6}", 1 => any::<String>(), 1 => Just("\u{fffd}".to_owned())];
    let number = prop_oneof![4 => 0.0_f32..8.0, 2 => Just(0.0), 1 => any::<u32>().prop_map(f32::from_bits)];
    let example = (prop::collection::vec((token.clone(), number.clone()), 0..12), 0_usize..20).prop_map(|(pairs, odd)| {
        let (tokens, mut activations): (Vec<String>, Vec<f32>) = pairs.into_iter().unzip();
        match odd {
            0 => drop(activations.pop()),
            1 => activations.push(1.0),
            _ => {}
        }
        EvidenceExample { tokens, activations }
    });
    let logits = prop::collection::vec((token, number.clone()), 0..4);
    let counts = (any::<u16>(), any::<u16>(), any::<f64>(), number);
    (counts, prop::collection::vec(example, 0..6), logits.clone(), logits).prop_map(|(counts, examples, top_logits, bottom_logits)| {
        let (layer, feature, frequency, max_activation) = counts;
        let (layer, feature) = (layer.into(), feature.into());
        Evidence { layer, feature, frequency, max_activation, examples, top_logits, bottom_logits }
    })
}

#[track_caller]
fn one_line(what: &str, text: &str) {
    assert!(!text.trim().is_empty(), "{what} is empty");
    let breaks = |letter: char| letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}');
    assert!(!text.chars().any(breaks), "{what} is one line of plain text, not {text:?}");
}

#[track_caller]
fn refusal(what: &str, error: &Error) {
    assert!(!matches!(error, Error::Panicked { .. }), "{what}: expected an error, not a panic: {error}");
    one_line("an error", &error.to_string());
}

/// A label twice, and on several threads at once: all the same.
fn label(explainer: &dyn Explainer, evidence: &Evidence) -> Result<String> {
    let label = explainer.label(evidence);
    let texts = |label: &Result<String>| label.as_ref().map_err(Error::to_string).cloned();
    assert_eq!(texts(&explainer.label(evidence)), texts(&label), "the same evidence gets another label");
    match &label {
        Ok(label) => one_line("a label", label),
        Err(error) => refusal("evidence", error),
    }
    label
}

fn labels_what_is_plain(explainer: &dyn Explainer) {
    for token in [" king", "\n", "ing", " 42", "é"] {
        let evidence = firing_on(token);
        let first = label(explainer, &evidence).unwrap_or_else(|error| panic!("a feature that fires on {token:?} alone: {error}"));
        thread::scope(|scope| {
            for other in (0..4).map(|_| scope.spawn(|| explainer.label(&evidence).ok())).collect::<Vec<_>>() {
                assert_eq!(other.join().ok().flatten().as_ref(), Some(&first), "another thread gets another label");
            }
        });
    }
}

fn takes_odd_evidence(explainer: &dyn Explainer) {
    let good = firing_on(" king");
    let with = |example: EvidenceExample| Evidence { examples: vec![example], ..good.clone() };
    let example = |tokens: &[&str], activations: &[f32]| EvidenceExample {
        tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
        activations: activations.to_vec(),
    };
    let odd = [
        Evidence { examples: Vec::new(), ..good.clone() },
        Evidence { examples: Vec::new(), top_logits: Vec::new(), bottom_logits: Vec::new(), ..good.clone() },
        Evidence { frequency: f64::NAN, max_activation: f32::NEG_INFINITY, ..good.clone() },
        with(example(&[], &[])),
        with(example(&["a", "b"], &[0.0, 0.0])),
        with(example(&["a", "b"], &[1.0])),
        with(example(&[], &[1.0, 2.0])),
        with(example(&["a", "b"], &[f32::NAN, f32::INFINITY])),
        with(example(&["a", "b"], &[-1.0, f32::MAX])),
        with(example(&[""], &[1.0])),
        with(example(&["\u{1b}[31m\u{0}\r\n\u{2028}\u{202e}"], &[1.0])),
        with(example(&[&"long".repeat(5000)], &[1.0])),
    ];
    for evidence in &odd {
        // What it says of them is its own affair; that it says it, and in one line, is not.
        drop(label(explainer, evidence));
    }
    let rng = TestRunner::deterministic().new_rng();
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::with_cases(256) }, rng);
    if let Err(error) = runner.run(&any_evidence(), |evidence| label(explainer, &evidence).map_or(Ok(()), |_| Ok(()))) {
        panic!("evidence of any kind: {error}");
    }
}

fn tells_what_it_is(chat: &dyn Chat) {
    let identity = chat.identity();
    one_line("the model's name", &identity.model);
    one_line("the endpoint", &identity.endpoint);
    assert_eq!(chat.identity(), identity, "it is now one model and now another");
    let authority = identity.endpoint.split("://").last().unwrap_or_default().split('/').next().unwrap_or_default();
    assert!(!authority.contains('@'), "the endpoint of its identity holds a name or a password");
    assert!(!identity.endpoint.contains(['?', '#']), "the endpoint of its identity holds a query, where keys may be");
    assert!(chat.concurrency() >= 1, "no call may run at all");
    if let Some(price) = chat.price() {
        let fine = |amount: f64| amount.is_finite() && amount >= 0.0;
        assert!(fine(price.prompt) && fine(price.completion), "{price:?} is no price");
    }
}

fn request(text: &str) -> ChatRequest {
    let messages = vec![ChatMessage { role: Role::User, content: text.to_owned() }];
    ChatRequest { messages, max_tokens: 16, temperature: 0.0, seed: Some(1), top_logprobs: None }
}

fn answers(chat: &dyn Chat) {
    let ask = |turn: usize| match chat.complete(&request(&format!("Say {turn}"))) {
        Ok(answer) => sound(&answer),
        Err(error) => panic!("a plain request: {error}"),
    };
    thread::scope(|scope| {
        for turn in 0..chat.concurrency().min(16) * 2 {
            scope.spawn(move || ask(turn));
        }
    });
    let told = ChatRequest { top_logprobs: Some(5), ..request("Say yes") };
    match chat.complete(&told) {
        Ok(answer) => sound(&answer),
        Err(error) => panic!("a request for probabilities: {error}"),
    }
}

fn sound(answer: &ChatAnswer) {
    let reply = match answer {
        ChatAnswer::Refused(reason) => return one_line("the reason of a refusal", reason),
        ChatAnswer::Reply(reply) => reply,
    };
    for ReplyToken { token, logprob, top } in reply.tokens.iter().flatten() {
        assert!(logprob.is_finite() && top.iter().all(|(_, logprob)| logprob.is_finite()), "{token:?} has a logarithm that is none");
        assert!(top.is_sorted_by(|(_, one), (_, next)| one >= next), "candidates for {token:?} are not in order: {top:?}");
    }
}

fn takes_odd_requests(chat: &dyn Chat) {
    let plain = request("Say yes");
    let odd = [
        ChatRequest { messages: Vec::new(), ..plain.clone() },
        ChatRequest { max_tokens: 0, ..plain.clone() },
        ChatRequest { max_tokens: u32::MAX, seed: Some(u64::MAX), top_logprobs: Some(u8::MAX), ..plain.clone() },
        ChatRequest { temperature: f32::NAN, ..plain.clone() },
        ChatRequest { temperature: -1.0, ..plain.clone() },
        request(""),
        request("\u{0}\u{1b}\n\u{2028}\u{10ffff} \"}]"),
        request(&"long ".repeat(20_000)),
    ];
    for request in &odd {
        match chat.complete(request) {
            Ok(answer) => sound(&answer),
            Err(error) => refusal("an odd request", &error),
        }
    }
}
