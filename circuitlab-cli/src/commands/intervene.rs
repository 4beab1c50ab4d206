//! `circuitlab intervene`.

mod show;

use anyhow::Context as _;
use circuitlab::generate::Sampling;
use circuitlab::graph::Prompt;
use circuitlab::intervene::{
    Budget, Change, Generated, Intervention, Mode, Named, Outcome, Positions, Study, Supernode, Target, Variant, Want, assignment,
    feature_at, generate, intervene, read_interventions, read_supernodes,
};
use circuitlab::saved::SavedTranscoder;
use circuitlab_core::LanguageModel;
use circuitlab_core::config::FloatKind;
use circuitlab_core::tch::Tensor;
use circuitlab_core::tensors;

use super::{Context, model};
use crate::args::{ChangeArgs, InterveneArgs};
use show::Shown;

pub(super) fn run(args: &InterveneArgs, context: &Context) -> anyhow::Result<()> {
    let (model, folder) = model::open(&args.place, context)?;
    let info = model.info();
    let tokenizer = super::generate::tokenizer(&args.prompt, &folder, info)?;
    let prompt = match (&args.prompt.prompt, &tokenizer) {
        (Some(text), Some(tokenizer)) => Prompt::of_text(text, !args.prompt.no_bos, tokenizer, info)?,
        _ => Prompt::of_tokens(args.prompt.tokens.clone(), tokenizer.as_ref(), info)?,
    };
    let (names, variants, texts) = planned(args, model.as_ref())?;
    let saved = SavedTranscoder::open(&context.registry, &args.clt, args.place.device.parse()?, FloatKind::F32)?;
    let study = intervene(model.as_ref(), &saved, &prompt, &variants, Budget::default())?;
    let continued = texts.iter().map(|named| continued(named, model.as_ref(), &saved, &prompt)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(file) = &args.tensors {
        tensors::write(file, &written(&prompt, &names, &variants, &study, &continued)?)?;
    }
    let shown = Shown { prompt: &prompt, tokenizer: tokenizer.as_ref(), top: args.top };
    context.print(&shown.json(&names, &variants, &study, &continued), || shown.text(&names, &variants, &study, &continued))
}

/// The interventions on the prompt with their names, and those that go on with the text.
fn planned(args: &InterveneArgs, model: &dyn LanguageModel) -> anyhow::Result<(Vec<String>, Vec<Variant>, Vec<Named>)> {
    let (interventions, supernodes) = changes(&args.changes)?;
    let mut named = match &args.file {
        Some(file) => read_interventions(file, &supernodes)?,
        None => Vec::new(),
    };
    if interventions.is_empty() && named.is_empty() {
        anyhow::bail!("nothing is changed; expected `--set-feature L/P/F=VALUE`, one of its kin, or `--file FILE`");
    }
    if !interventions.is_empty() {
        let name = "intervention".to_owned();
        if named.iter().any(|one| one.name == name) {
            anyhow::bail!("`intervention` is what the flags' own intervention is called; `--file` needs another name for its own");
        }
        let want = if args.pre_activations { Want::PreActivations } else { Want::Activations };
        named.push(Named { name, interventions, mode: mode(args, model)?, want, new_tokens: None });
    }
    let (texts, on_the_prompt): (Vec<_>, Vec<_>) = named.into_iter().partition(|one| one.new_tokens.is_some());
    let (names, variants) = on_the_prompt
        .into_iter()
        .map(|one| (one.name, Variant { interventions: one.interventions, mode: one.mode, want: one.want }))
        .unzip();
    Ok((names, variants, texts))
}

fn mode(args: &InterveneArgs, model: &dyn LanguageModel) -> anyhow::Result<Mode> {
    let Some(layers) = &args.constrained_layers else {
        return Ok(match (args.direct, args.changes.no_freeze_attention) {
            (true, _) => Mode::direct(model.info()),
            (false, true) => Mode::Free,
            (false, false) => Mode::FrozenAttention,
        });
    };
    match layers.parse::<Positions>() {
        Ok(Positions::Range(range)) => Ok(Mode::Constrained(range)),
        Ok(Positions::From(first)) => Ok(Mode::Constrained(first..model.info().layers)),
        _ => anyhow::bail!("--constrained-layers: `{layers}` is no range of layers; expected one such as `2:5`"),
    }
}

/// What a flag makes of a feature and a number.
type OfFeature = fn(usize, f64) -> Target;

/// What a flag makes of a number.
type OfNumber = fn(f64) -> Change;

/// What the flags change, and the supernodes that they know.
pub(super) fn changes(args: &ChangeArgs) -> anyhow::Result<(Vec<Intervention>, Vec<Supernode>)> {
    let mut supernodes = Vec::new();
    for file in &args.supernodes {
        supernodes.extend(read_supernodes(file)?);
    }
    for text in &args.supernode {
        supernodes.push(Supernode::parse(text).context("--supernode")?);
    }
    let mut all = Vec::new();
    let of_features: [(&str, &[String], OfFeature); 4] = [
        ("--set-feature", &args.set_feature, |feature, value| Target::Feature { feature, change: Change::Set(value) }),
        ("--scale-feature", &args.scale_feature, |feature, factor| Target::Feature { feature, change: Change::Scale(factor) }),
        ("--add-feature", &args.add_feature, |feature, value| Target::Feature { feature, change: Change::Add(value) }),
        ("--steer", &args.steer, |feature, times| Target::Decoder { feature, times }),
    ];
    for (flag, texts, target) in of_features {
        for text in texts {
            let read = assignment(text).and_then(|(place, number)| Ok((feature_at(place)?, number)));
            let ((layer, positions, feature), number) = read.context(flag)?;
            all.push(Intervention { layer, positions, target: target(feature, number) });
        }
    }
    for text in &args.ablate {
        let (layer, positions, feature) = feature_at(text).context("--ablate")?;
        all.push(Intervention::feature(layer, positions, feature, Change::ABLATE));
    }
    let of_supernodes: [(&str, &[String], OfNumber); 3] = [
        ("--set-supernode", &args.set_supernode, Change::Set),
        ("--scale-supernode", &args.scale_supernode, Change::Scale),
        ("--add-supernode", &args.add_supernode, Change::Add),
    ];
    for (flag, texts, change) in of_supernodes {
        for text in texts {
            let (name, number) = assignment(text).context(flag)?;
            all.extend(Supernode::find(&supernodes, name).context(flag)?.interventions(change(number)));
        }
    }
    for name in &args.ablate_supernode {
        all.extend(Supernode::find(&supernodes, name).context("--ablate-supernode")?.interventions(Change::ABLATE));
    }
    Ok((all, supernodes))
}

/// Continues the text by the likeliest tokens.
fn continued(named: &Named, model: &dyn LanguageModel, saved: &SavedTranscoder, prompt: &Prompt) -> anyhow::Result<(String, Generated)> {
    let (most, freeze) = (named.new_tokens.unwrap_or(0), named.mode.freezes_attention());
    let generated = generate(model, saved, prompt, &named.interventions, freeze, most, &Sampling::GREEDY);
    Ok((named.name.clone(), generated.with_context(|| format!("intervention `{}`", named.name))?))
}

/// Everything as tensors.
fn written(
    prompt: &Prompt,
    names: &[String],
    variants: &[Variant],
    study: &Study,
    continued: &[(String, Generated)],
) -> anyhow::Result<Vec<(String, Tensor)>> {
    let ids: Vec<i64> = prompt.tokens.iter().map(|token| i64::from(*token)).collect();
    let (index, values) = study.clean.features.tensors()?;
    let mut all = vec![
        ("input_ids".to_owned(), Tensor::from_slice(&ids)),
        ("logits".to_owned(), study.clean.logits.shallow_clone()),
        ("active_features".to_owned(), index.f_to_kind(circuitlab_core::tch::Kind::Int64)?),
        ("activation_values".to_owned(), values),
    ];
    for ((name, variant), Outcome { logits, features }) in names.iter().zip(variants).zip(&study.variants) {
        all.push((format!("iv_{name}_logits"), logits.shallow_clone()));
        let (index, values) = features.tensors()?;
        match variant.want {
            Want::PreActivations => all.push((format!("iv_{name}_pre_of_active"), values)),
            Want::Activations | Want::Logits => {
                all.extend([(format!("iv_{name}_act_idx"), index), (format!("iv_{name}_act_val"), values)]);
            }
        }
    }
    for (name, generated) in continued {
        // One continued text needs no name.
        let prefix = if continued.len() == 1 { "gen".to_owned() } else { format!("gen_{name}") };
        all.extend(super::generate::named(generated, &prefix)?);
    }
    Ok(all)
}
