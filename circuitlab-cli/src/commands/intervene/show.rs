//! What came of interventions, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};

use circuitlab::graph::Prompt;
use circuitlab::intervene::{Features, Generated, Outcome, Site, Study, Variant, Want};
use circuitlab::text::Tokenizer;
use circuitlab_core::tch::{Kind, Tensor};
use serde_json::{Value, json};

use crate::output::Table;

/// How results are shown.
pub(super) struct Shown<'a> {
    pub(super) prompt: &'a Prompt,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    /// How many tokens and features.
    pub(super) top: usize,
}

/// A number without changes and with them.
#[derive(Clone, Copy)]
struct Pair {
    before: f64,
    after: f64,
}

impl Pair {
    fn change(self) -> f64 {
        self.after - self.before
    }
}

impl Shown<'_> {
    pub(super) fn text(&self, names: &[String], variants: &[Variant], study: &Study, continued: &[(String, Generated)]) -> String {
        let mut parts = Vec::new();
        for ((name, variant), outcome) in names.iter().zip(variants).zip(&study.variants) {
            let title = format!("{name}: {}, {}", count(variant.interventions.len(), "change"), mode(variant));
            let tokens = self.token_table(&study.clean, outcome);
            parts.push(format!("{title}\n\n{tokens}\n\n{}", self.feature_table(before(study, variant), outcome, variant.want)));
        }
        parts.extend(continued.iter().map(|(name, generated)| format!("{name}: {}", self.words(&generated.tokens))));
        parts.join("\n\n\n")
    }

    pub(super) fn json(&self, names: &[String], variants: &[Variant], study: &Study, continued: &[(String, Generated)]) -> Value {
        let all = names.iter().zip(variants).zip(&study.variants).map(|((name, variant), outcome)| {
            let tokens: Vec<Value> = self
                .tokens(&study.clean, outcome)
                .into_iter()
                .map(|(id, pair)| json!({"token": id, "text": self.word(id), "before": pair.before, "after": pair.after}))
                .collect();
            let features: Vec<Value> = self
                .features(before(study, variant), outcome)
                .into_iter()
                .map(|(site, before, after)| {
                    json!({"layer": site.layer, "position": site.position, "feature": site.feature, "before": before, "after": after})
                })
                .collect();
            json!({"name": name, "mode": mode(variant), "pre_activations": variant.want == Want::PreActivations, "tokens": tokens, "features": features})
        });
        let interventions: Vec<Value> = all.collect();
        let texts: Vec<Value> = continued
            .iter()
            .map(|(name, generated)| json!({"name": name, "tokens": generated.tokens, "text": self.words(&generated.tokens)}))
            .collect();
        json!({"prompt": self.prompt.tokens, "interventions": interventions, "generated": texts})
    }

    /// Tokens that are likeliest without changes or with them, likeliest with them first, and their probabilities.
    fn tokens(&self, clean: &Outcome, outcome: &Outcome) -> Vec<(i64, Pair)> {
        let [before, after] = [clean, outcome].map(probabilities);
        let ids: BTreeSet<i64> = [&before, &after].into_iter().flat_map(|of| top(of, self.top)).collect();
        let mut rows: Vec<(i64, Pair)> =
            ids.into_iter().map(|id| (id, Pair { before: before.double_value(&[id]), after: after.double_value(&[id]) })).collect();
        rows.sort_by(|a, b| b.1.after.total_cmp(&a.1.after).then(b.1.before.total_cmp(&a.1.before)));
        rows
    }

    /// Features whose numbers changed most; of an inactive feature there is none.
    fn features(&self, clean: &Features, outcome: &Outcome) -> Vec<(Site, Option<f64>, Option<f64>)> {
        let mut all: BTreeMap<Site, (Option<f64>, Option<f64>)> = listed(clean).map(|(site, value)| (site, (Some(value), None))).collect();
        for (site, value) in listed(&outcome.features) {
            all.entry(site).or_default().1 = Some(value);
        }
        let change = |(before, after): (Option<f64>, Option<f64>)| (after.unwrap_or(0.0) - before.unwrap_or(0.0)).abs();
        let mut rows: Vec<_> = all.into_iter().filter(|(_, pair)| change(*pair) != 0.0).collect();
        rows.sort_by(|a, b| change(b.1).total_cmp(&change(a.1)));
        rows.into_iter().take(self.top).map(|(site, (before, after))| (site, before, after)).collect()
    }

    fn token_table(&self, clean: &Outcome, outcome: &Outcome) -> Table {
        let mut table = Table::new(["next token", "before", "after", "change"]);
        for (id, pair) in self.tokens(clean, outcome) {
            let share = |share: f64| format!("{:.2} %", 100.0 * share);
            table.row([self.word(id), share(pair.before), share(pair.after), format!("{:+.2}", 100.0 * pair.change())]);
        }
        table
    }

    fn feature_table(&self, clean: &Features, outcome: &Outcome, want: Want) -> String {
        let features = self.features(clean, outcome);
        if features.is_empty() {
            return "no feature changes".to_owned();
        }
        let what = if want == Want::PreActivations { "pre-activation before" } else { "activation before" };
        let mut table = Table::new(["layer/position/feature", "at", what, "after", "change"]);
        for (site, before, after) in features {
            let number = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.4}"));
            let at = self.prompt.tokens.get(site.position).map_or_else(String::new, |id| self.word(i64::from(*id)));
            let change = after.unwrap_or(0.0) - before.unwrap_or(0.0);
            table.row([site.to_string(), at, number(before), number(after), format!("{change:+.4}")]);
        }
        table.to_string()
    }

    /// A token as text in quotes, or as its number.
    fn word(&self, id: i64) -> String {
        let text = self.tokenizer.and_then(|tokenizer| tokenizer.decode(&[u32::try_from(id).ok()?]).ok());
        text.map_or_else(|| id.to_string(), |text| format!("{text:?}"))
    }

    fn words(&self, ids: &[u32]) -> String {
        let text = self.tokenizer.and_then(|tokenizer| tokenizer.decode(ids).ok());
        text.unwrap_or_else(|| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }
}

/// What a variant's features are compared with.
fn before<'a>(study: &'a Study, variant: &Variant) -> &'a Features {
    if variant.want == Want::PreActivations { &study.clean_pre_activations } else { &study.clean.features }
}

fn mode(variant: &Variant) -> String {
    use circuitlab::intervene::Mode;
    match &variant.mode {
        Mode::FrozenAttention => "attention held".to_owned(),
        Mode::Free => "nothing held".to_owned(),
        Mode::Constrained(layers) => format!("attention and layers {}:{} held", layers.start, layers.end),
    }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn listed(features: &Features) -> impl Iterator<Item = (Site, f64)> {
    features.sites.iter().copied().zip(features.values.iter().map(|value| f64::from(*value)))
}

/// Of the next token: `[vocabulary]`.
fn probabilities(outcome: &Outcome) -> Tensor {
    outcome.logits.select(0, outcome.logits.size()[0] - 1).softmax(-1, Kind::Double)
}

fn top(probabilities: &Tensor, count: usize) -> Vec<i64> {
    let (_, ids) = probabilities.topk((count as i64).min(probabilities.numel() as i64), 0, true, true);
    (0..ids.numel() as i64).map(|place| ids.int64_value(&[place])).collect()
}
